"""How long a training step takes for paths that begin in one block or another, measured on a real batch.

The step of a set of paths is taken as

    ``all forward passes + backward passes of the blocks from the lowest destination on + each path's own work``

so depth is paid once, by whichever path is lowest. Passes are timed block by block, a path's own work once for each
pair of input and output size: what ran elsewhere on the machine makes a time longer, so the shortest of some counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.distributed import from_first_process
from rankwise.paths.fused import LowRankSum
from rankwise.paths.low_rank_path import LowRankPath
from rankwise.rules.kinds import BLOCK_KINDS, BLOCK_OUTPUT, FEED_FORWARD_SUM
from rankwise.scores.probe import Batch, ComputeLoss
from rankwise.wiring.anatomy import anatomy_of, find_blocks
from rankwise.wiring.block_hooks import first_tensor, output_tensor, with_first_tensor

OUTSIDE = -1  # what runs before and after the blocks
STEPS, REPEATS = 4, 8
WIDER = 8  # the rank at which a path is timed once more
TOGETHER = 4  # and as how many paths of rank 1

Size = tuple[int, int]


@dataclass(frozen=True)
class StepTime:
    """The parts of a training step, in seconds.

    Args:
        outside: Forward and backward passes outside the blocks, and what an optimizer's step takes however many paths
            it has.
        still: Each block's forward pass where no backward pass follows.
        forward: Each block's forward pass where one does, for which it keeps what it made.
        backward: Each block's backward pass, its weights frozen.
        first: What the first rank of each path adds, its optimizer included.
        more: What each further rank adds.
        sources: The block that each path reads in.
        depths: The lowest block whose backward pass each path needs.
    """

    outside: float
    still: tuple[float, ...]
    forward: tuple[float, ...]
    backward: tuple[float, ...]
    first: Mapping[str, float]
    more: Mapping[str, float]
    sources: Mapping[str, int]
    depths: Mapping[str, int]

    def frozen(self, depth: int, source: int = 0) -> float:
        """Return the step without the paths' own work.

        Args:
            depth: The lowest block whose backward pass runs.
            source: The lowest block whose forward pass runs; 0 unless a prefix is kept.
        """
        return self.outside + sum(self.still[source:depth]) + sum(self.forward[depth:]) + sum(self.backward[depth:])

    def own(self, ranks: Mapping[str, int]) -> float:
        """Return what paths add by themselves."""
        return sum(self.first[name] + (rank - 1) * self.more[name] for name, rank in ranks.items() if rank)

    def step(self, ranks: Mapping[str, int], *, prefix_cache: bool = False) -> float:
        """Return the seconds of a step with the given ranks.

        Args:
            ranks: The rank of each path.
            prefix_cache: Whether what runs below the lowest source is kept and not run.
        """
        on = [name for name, rank in ranks.items() if rank]
        top = len(self.backward)
        depth = min((self.depths[name] for name in on), default=top)
        source = min((self.sources[name] for name in on), default=top) if prefix_cache else 0
        return self.frozen(depth, source) + self.own(ranks)

    def of(self, names: Sequence[str]) -> StepTime:
        """Return the same with the paths in the given order."""
        first, more = ({name: times[name] for name in names} for times in (self.first, self.more))
        sources, depths = ({name: blocks[name] for name in names} for blocks in (self.sources, self.depths))
        return replace(self, first=first, more=more, sources=sources, depths=depths)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> StepTime:
        """Return what ``to_dict`` gave."""
        return cls(**{**saved, **{name: tuple(saved[name]) for name in ("still", "forward", "backward")}})


def measure_step(
    model: nn.Module,
    paths: Mapping[str, LowRankPath],
    batch: Batch,
    loss_of: ComputeLoss,
    *,
    prefix_cache: bool = False,
) -> StepTime:
    """Time some training steps of a model whose paths are off meanwhile; all processes get the first one's times.

    Where the embedding's output requires a gradient, as with gradient checkpointing, the backward pass goes down to it
    whatever the lowest path is, unless the prefix is kept: then depth saves nothing, and every path has depth 0.

    Args:
        model: A ``PeftModel`` with the candidates on it; it is left in training mode.
        paths: The candidates.
        batch: What the steps run on.
        loss_of: Called with (model, batch): the loss.
        prefix_cache: Whether the frozen prefix is kept in training.

    Raises:
        ValueError: The family's blocks are not described.
    """
    wrapped: Any = model
    base = wrapped.get_base_model()
    try:
        found_blocks = find_blocks(base, anatomy_of(base))
    except ValueError as error:
        raise ValueError(f"time_limit= goes by the model's blocks, which are not known: {error}") from error
    blocks = list(found_blocks.values())
    model.train()  # dropout and checkpointing take their time
    passes = [[math.inf] * (len(blocks) + 1) for _ in ("still", "forward", "backward")]
    for _ in range(STEPS):
        with wrapped.disable_adapter(), _timed(blocks) as timer:
            with torch.no_grad():
                loss_of(model, batch)
            laps = [timer.lap()]
            loss = loss_of(model, batch)
            laps.append(timer.lap())
            torch.autograd.grad(loss, timer.entered)
            laps.append(timer.lap())
        passes = [list(map(min, shortest, lap)) for shortest, lap in zip(passes, laps, strict=True)]
    x = timer.entered
    sizes = {name: (path.lora_A.shape[1], path.lora_B.shape[0]) for name, path in paths.items()}
    kinds = sorted(set(sizes.values()))
    own = [_path_time(x.reshape(-1, x.shape[-1]), size) for size in kinds]
    found = iter(from_first_process([*chain(*passes), *chain(*own)], x.device))
    still, forward, backward = ([next(found) for _ in seconds] for seconds in passes)
    times = {size: (next(found), next(found), next(found)) for size in kinds}
    places = _places(base, paths, list(found_blocks))
    return StepTime(
        outside=forward[OUTSIDE] + backward[OUTSIDE] + min((once for *_, once in times.values()), default=0.0),
        still=tuple(still[:OUTSIDE]),
        forward=tuple(forward[:OUTSIDE]),
        backward=tuple(backward[:OUTSIDE]),
        first={name: times[size][0] for name, size in sizes.items()},
        more={name: times[size][1] for name, size in sizes.items()},
        sources={name: place - (paths[name].kind == "cut") for name, place in places.items()},
        depths={name: 0 if timer.whole and not prefix_cache else _depth(paths[name], places[name]) for name in paths},
    )


def _places(base: nn.Module, paths: Mapping[str, LowRankPath], blocks: Sequence[str]) -> dict[str, int]:
    """Return each path's block; of a path outside the blocks 0, or their number where its module comes after them."""
    order = {name.replace(".base_layer", ""): number for number, (name, _) in enumerate(base.named_modules())}
    behind = order[blocks[-1]]
    return {
        name: path.built_block if path.built_block >= 0 else len(blocks) * (order.get(path.module, 0) > behind)
        for name, path in paths.items()
    }


def _depth(path: LowRankPath, place: int) -> int:
    """Return the lowest block whose backward pass a path needs; one that ends behind its block does not need it."""
    ends_behind = path.kind in BLOCK_KINDS and BLOCK_KINDS[path.kind].destination in (FEED_FORWARD_SUM, BLOCK_OUTPUT)
    return place + ends_behind


def _path_time(x: Tensor, size: Size) -> tuple[float, float, float]:
    """Return what the first rank of a path of that size adds to a step, each further rank, and all paths together once.

    Args:
        x: Tokens x features; their number, precision and device count.
        size: Input and output size.
    """
    tokens, gradient = (torch.ones(len(x), width, dtype=x.dtype, device=x.device) for width in size)
    base = torch.ones_like(gradient)

    def took(rank: int, count: int) -> float:
        made: dict[str, Any] = {"dtype": x.dtype, "device": x.device, "requires_grad": True}
        paths = [(torch.ones(rank, size[0], **made), torch.ones(size[1], rank, **made)) for _ in range(count)]
        optimizer = torch.optim.AdamW([*chain(*paths)])
        source = tokens.requires_grad_()

        def step() -> None:
            for a, b in paths:
                y = LowRankSum.apply(source, a, b, 1.0, x.dtype, base, None, None)
                _, a.grad, b.grad = torch.autograd.grad(y, (source, a, b), gradient)
            optimizer.step()

        return min(_seconds(step, x.device) for _ in range(REPEATS))

    alone, wider = took(1, 1), took(WIDER, 1)
    first = min(max(took(1, TOGETHER) - alone, 0.0) / (TOGETHER - 1), alone)
    return first, max(wider - alone, 0.0) / (WIDER - 1), alone - first


def _now(device: torch.device) -> float:
    """Return the seconds so far; with one thread those of this process, which stand still while others run."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time() if alone else time.perf_counter()


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    began = _now(device)
    step()
    return _now(device) - began


class _Timer:
    """Adds up seconds by section; the last one is what is outside the blocks.

    Args:
        sections: How many there are.
        device: Where they run.
    """

    def __init__(self, sections: int, device: torch.device) -> None:
        self.seconds = [0.0] * sections
        self.device = device
        self.running = [OUTSIDE]
        self.last = _now(device)
        self.entered = torch.empty(0)
        self.whole = False

    def turn(self) -> None:
        """Give the time since the last turn to the section that ran."""
        now = _now(self.device)
        self.seconds[self.running[-1]] += now - self.last
        self.last = now

    def lap(self) -> list[float]:
        """Return the seconds since the last lap."""
        self.turn()
        found, self.seconds = self.seconds, [0.0] * len(self.seconds)
        return found


@contextmanager
def _timed(blocks: list[nn.Module]) -> Iterator[_Timer]:
    """Tell a timer which block runs, inside; its ``entered`` becomes what enters the lowest one, cut off below."""
    timer = _Timer(len(blocks) + 1, next(blocks[0].parameters()).device)

    def begin(number: int) -> Callable[..., Any]:
        def hook(block: nn.Module, args: Any, kwargs: Any) -> Any:
            timer.turn()
            timer.running.append(number)
            if number or not torch.is_grad_enabled() or timer.entered.numel():
                return None
            x = first_tensor(args, kwargs)
            timer.whole = x.requires_grad
            timer.entered = x.detach().requires_grad_()
            return with_first_tensor(args, kwargs, timer.entered)

        return hook

    def end(number: int) -> Callable[..., Any]:
        def reached(gradient: Tensor) -> None:
            timer.turn()
            timer.running[0] = number

        def hook(block: nn.Module, args: Any, output: Any) -> None:
            timer.turn()
            timer.running.pop()
            if output_tensor(output).requires_grad:
                output_tensor(output).register_hook(reached)

        return hook

    with ExitStack() as stack:
        for number, block in enumerate(blocks):
            stack.callback(block.register_forward_pre_hook(begin(number), with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(end(number)).remove)
        yield timer
