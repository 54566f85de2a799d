"""Keeps what a frozen prefix makes of each training example, and puts it back in the epochs that follow."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rankwise.distributed import rank
from rankwise.prefix.rows import Rows
from rankwise.prefix.structure import Prefix, prefix_of
from rankwise.wiring.block_hooks import output_tensor, with_output_tensor
from rankwise.wiring.checkpointing import is_reentrant

READ = ("input_ids", "attention_mask", "token_type_ids", "position_ids")  # what the prefix of a row depends on
UNREAD = ("labels", "num_items_in_batch")


class Row(NamedTuple):
    """An example in a batch: the key of its tokens, and where they are between its padding."""

    key: str
    first: int
    end: int


class PrefixCache:
    """A prefix that runs once per training example; see ``prefix_cache``.

    Args:
        prefix: The prefix.
        rows: Where its output is kept.
        evaluating: Whether the prefix is in evaluation mode while the rest trains.

    Attributes:
        hits: Training forward passes that the prefix was left out of.
        misses: Those in which it ran.
    """

    def __init__(self, prefix: Prefix, rows: Rows, *, evaluating: bool = False) -> None:
        self.prefix = prefix
        self.rows = rows
        self.evaluating = evaluating
        self.hits = self.misses = 0
        self.batch: list[Row] = []
        self.checkpointed: list[Any] = []
        self.known = self.seen = False
        self.state: Tensor | None = None  # of the generators, before a pass in which the prefix runs
        self.form: Any = None  # what the last block returned, without the activation
        self.weights: tuple[int, ...] = self._weights()

    @contextmanager
    def attached(self) -> Iterator[PrefixCache]:
        """Take the place of the prefix inside."""
        blocks = self.prefix.blocks
        given = [block.__dict__.get("forward") for block in blocks]
        hook = self.prefix.model.register_forward_pre_hook(self._begin, with_kwargs=True)
        after = self.prefix.model.register_forward_hook(self._end, always_call=True)
        try:
            for block in blocks:
                block.forward = partial(self._block, block, block.forward)
            yield self
        finally:
            hook.remove()
            after.remove()
            for block, forward in zip(blocks, given, strict=True):
                del block.forward
                if forward is not None:
                    block.forward = forward
            self.rows.clear()

    def _weights(self) -> tuple[int, ...]:
        """Return what changes when a weight of the prefix is written to or replaced."""
        return tuple(part for p in self.prefix.parameters() for part in (id(p), p._version, p.data_ptr()))

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.batch = []
        if not model.training or torch.compiler.is_compiling():
            return
        if self.evaluating:
            for module in (*self.prefix.before, *self.prefix.blocks):
                module.eval()
        inputs = self._inputs(args, kwargs)
        if self._weights() != self.weights:  # a checkpoint was loaded, or the model moved
            self.rows.clear()
            self.weights = self._weights()
        self.batch = rows_of(**inputs)
        self.known = self.seen and all(row.key in self.rows for row in self.batch)
        self.hits += self.known
        self.misses += not self.known
        self.state = None if self.known else _generators(inputs["input_ids"].device)
        # Without gradients there is nothing to checkpoint, and the reentrant kind would make some.
        self.checkpointed = [block for block in self.prefix.blocks if block.__dict__.get("gradient_checkpointing")]
        for block in self.checkpointed:
            block.gradient_checkpointing = False

    def _inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        given = {**dict(zip(READ, args, strict=False)), **kwargs}
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        strange = [name for name in tensors if name not in (*READ, *UNREAD)]
        if strange or "input_ids" not in tensors:
            raise ValueError(
                f"a prefix is kept by the tokens of a row, and this model is called with "
                f"{', '.join(strange) or 'no input_ids'}, which it may depend on too: leave the prefix cache out"
            )
        mask = tensors.get("attention_mask")
        if mask is not None and mask.dim() != 2:
            raise ValueError(
                f"a prefix is kept by the tokens of a row, and an attention_mask of {mask.dim()} dimensions lets them "
                "see others: leave the prefix cache out"
            )
        config: Any = self.prefix.model.config
        for name in ("output_hidden_states", "output_attentions", "output_router_logits"):
            if given.get(name, getattr(config, name, False)):
                raise ValueError(
                    f"{name}=True asks for what the prefix makes on its way, and only its end is kept: set it to "
                    "False, or leave the prefix cache out"
                )
        return {name: value for name, value in tensors.items() if name in READ}

    def _block(self, block: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.batch:
            return forward(*args, **kwargs)
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        last = block is self.prefix.blocks[-1]
        if self.known:
            return self._formed(self._kept(x) if last else x)
        with torch.no_grad():  # gradient checkpointing makes the embeddings require a gradient that nobody asks for
            output = forward(*args, **kwargs)
        if not last:
            return output
        self._keep(output)
        return self._formed(output_tensor(output))

    def _keep(self, output: Any) -> None:
        if self.state is not None and not torch.equal(self.state, _generators(output_tensor(output).device)):
            raise ValueError(
                "the prefix draws random numbers while it trains (dropout), so it is not the same in every epoch: set "
                "the model's dropout to 0, or say evaluating=True to have the prefix in evaluation mode while the rest "
                "trains (recipe: training.prefix_cache.evaluating: true)"
            )
        if isinstance(output, tuple) and any(isinstance(part, Tensor) for part in output[1:]):
            raise ValueError(
                f"{type(self.prefix.blocks[-1]).__name__} returns more than its output, which is not kept: leave the "
                "prefix cache out"
            )
        self.form, self.seen = with_output_tensor(output, None), True  # type: ignore[arg-type]
        for row, h in zip(self.batch, output_tensor(output), strict=True):
            if row.key not in self.rows:
                self.rows.put(row.key, h[row.first : row.end])

    def _kept(self, x: Tensor) -> Tensor:
        """Return the prefix's output (B x T x d) for the batch; where rows are padded, zeros that nothing reads."""
        h = torch.zeros_like(x, requires_grad=False)
        for place, row in zip(h, self.batch, strict=True):
            place[row.first : row.end] = self.rows.get(row.key).to(x.device, x.dtype)
        return h

    def _formed(self, h: Tensor) -> Any:
        h = h.detach()
        if is_reentrant(self.prefix.following):  # which builds no graph for an input without a gradient
            h.requires_grad_()
        return with_output_tensor(self.form, h)

    def _end(self, model: nn.Module, args: Any, output: Any) -> None:
        self.batch = []
        for block in self.checkpointed:
            block.gradient_checkpointing = True
        self.checkpointed = []


def rows_of(
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> list[Row]:
    """Return the rows of a batch (B x T): equal tokens at equal places have equal keys, whatever pads them."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    table = [input_ids, mask, token_type_ids, position_ids]
    stacked = torch.stack([t.expand_as(input_ids).long() for t in table if t is not None], 1).cpu()  # one transfer
    present = f"{token_type_ids is not None} {position_ids is not None}"
    rows = []
    for each in stacked:
        (places,) = each[1].nonzero(as_tuple=True)
        first, end = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
        content = each[:, first:end].contiguous().numpy().tobytes()
        place = first if position_ids is None else 0  # without given positions, they are counted from the row's start
        key = hashlib.blake2b(content, digest_size=16, person=f"{present} {place}"[:16].encode()).hexdigest()
        rows.append(Row(key, first, end))
    return rows


def _generators(device: torch.device) -> Tensor:
    """Return the states of the generators that a module on a device draws from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


@contextmanager
def prefix_cache(
    model: nn.Module,
    *,
    ram_bytes: int = 2**31,
    folder: str | Path | None = None,
    half: bool = False,
    evaluating: bool = False,
) -> Iterator[PrefixCache]:
    """Run the blocks below everything that trains once per training example inside.

    From the second epoch on a training forward pass begins at the lowest block that trains or has a path, with what
    the prefix made of each row when it was first seen. Rows are told by their tokens (with their types and positions),
    so the order and the padding of batches may change. Evaluation runs the whole network.

    A run with the cache equals one without: bit for bit where a row was first seen in a batch of the same rows and
    lengths, since the processor's matrix products round by the shape of a batch; else to rounding. ``half`` rounds
    what is kept. What is kept is forgotten when a weight of the prefix changes, and deleted at the end.

    Args:
        model: The model, its paths on it; wrapped by PEFT or not.
        ram_bytes: What may be kept in memory.
        folder: Where the rest goes, as safetensors; without one the prefix of the rows beyond runs in every epoch.
        half: Keep 16 bits of each number, as bfloat16.
        evaluating: Put the prefix in evaluation mode while the rest trains; without it, active dropout is refused.

    Raises:
        ValueError: Something trains in block 0 or before it, the prefix draws random numbers, or it depends on more
            than the tokens of a row.
    """
    place = None if folder is None else Path(folder) / f"prefix-{rank()}"
    rows = Rows(ram_bytes, place, torch.bfloat16 if half else None)
    with PrefixCache(prefix_of(model), rows, evaluating=evaluating).attached() as cache:
        yield cache
