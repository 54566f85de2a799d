"""Keeps what a frozen prefix makes of each training example, and puts it back in the epochs that follow."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rankwise.distributed import rank
from rankwise.prefix.rows import Rows
from rankwise.prefix.structure import Prefix, prefix_of
from rankwise.scores.likelihood import IGNORED, shifts_by_class
from rankwise.wiring.block_hooks import output_tensor, with_output_tensor
from rankwise.wiring.checkpointing import is_reentrant

READ = ("input_ids", "attention_mask", "token_type_ids", "position_ids")  # what the prefix of a row depends on
UNREAD = ("labels", "num_items_in_batch")
SHARDED = ("DTensor", "FlatParameter")  # another tensor at every step, so nothing tells whether it has changed
ROPE_BY_BATCH = ("longrope", "dynamic")  # rotations that depend on the longest row of a batch


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
        self.modes: dict[nn.Module, bool] = {}  # the prefix's own, while it is in evaluation mode
        self.condition: tuple[Any, ...] = ()
        _check_rope(prefix.model.config)

    @contextmanager
    def attached(self) -> Iterator[PrefixCache]:
        """Take the place of the prefix inside."""
        blocks = self.prefix.blocks
        self.condition = self._condition()
        given = [block.__dict__.get("forward") for block in blocks]
        hook = self.prefix.model.register_forward_pre_hook(self._begin, with_kwargs=True)
        after = self.prefix.model.register_forward_hook(self._end, always_call=True)
        try:
            for block in blocks:
                block.forward = _Through(self, block, block.forward)
            yield self
        finally:
            hook.remove()
            after.remove()
            for block, forward in zip(blocks, given, strict=True):
                del block.forward
                if forward is not None:
                    block.forward = forward
            self.rows.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> PrefixCache:
        """Stay the same: a copy of the model has blocks of its own, which run."""
        return self

    def _condition(self) -> tuple[Any, ...]:
        """Return what changes with the prefix's output: when a weight is written to or replaced, and the precision.

        Raises:
            ValueError: Something in the prefix trains by now, or is sharded.
        """
        parts: list[Any] = []
        for p in self.prefix.parameters():
            if p.requires_grad:
                raise ValueError(
                    "something in the kept prefix trains by now (a block was unfrozen, or an adapter added there), and "
                    "the prefix runs without gradients: leave prefix_cache before, and enter it again afterwards"
                )
            if type(p).__name__ in SHARDED:
                raise ValueError(
                    f"the prefix's weights are sharded ({type(p).__name__}), so nothing tells when they change: leave "
                    "the prefix cache out under FSDP"
                )
            parts += [id(p), p._version, p.data_ptr()]
        device = next(self.prefix.parameters()).device.type
        return (*parts, torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device))

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model is not self.prefix.model:  # a copy
            return
        self.batch = []
        # Passes without gradients (generation with its own cache of keys, reference models) run the whole network.
        if not model.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        inputs = self._inputs(args, kwargs)
        condition = self._condition()
        if condition != self.condition:  # a checkpoint was loaded, the model moved, or another precision
            self.rows.clear()
            self.condition = condition
        if self.evaluating:
            self._evaluate()
        self.batch = rows_of(**inputs)
        self.known = self.seen and all(row.key in self.rows for row in self.batch)
        self.hits += self.known
        self.misses += not self.known
        self.state = None if self.known else _generators(inputs["input_ids"].device)
        # Without gradients there is nothing to checkpoint, and the reentrant kind would make some.
        self.checkpointed = [block for block in self.prefix.blocks if block.__dict__.get("gradient_checkpointing")]
        for block in self.checkpointed:
            block.gradient_checkpointing = False

    def _evaluate(self) -> None:
        for part in (*self.prefix.before, *self.prefix.blocks):
            self.modes |= {module: module.training for module in part.modules()}
            part.eval()

    def _inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        named = {**dict(zip(READ, args, strict=False)), **kwargs}
        given = {name: value for name, value in named.items() if value is not None}
        plain = (bool, int, float, str)
        strange = [
            name
            for name, value in given.items()
            if not isinstance(value, plain) and not (isinstance(value, Tensor) and name in (*READ, *UNREAD))
        ]
        if strange or "input_ids" not in given:
            raise ValueError(
                f"a prefix is kept by the tokens of a row, and this model is called with "
                f"{', '.join(strange) or 'no input_ids'}, which it may depend on too: leave the prefix cache out"
            )
        mask, labels = given.get("attention_mask"), given.get("labels")
        if mask is not None and mask.dim() != 2:
            raise ValueError(
                f"a prefix is kept by the tokens of a row, and an attention_mask of {mask.dim()} dimensions lets them "
                "see others: leave the prefix cache out"
            )
        if mask is not None and labels is not None:
            self._check_labels(labels, mask)
        config: Any = self.prefix.model.config
        for name in ("output_hidden_states", "output_attentions", "output_router_logits"):
            if given.get(name, getattr(config, name, False)):
                raise ValueError(
                    f"{name}=True asks for what the prefix makes on its way, and only its end is kept: set it to "
                    "False, or leave the prefix cache out"
                )
        return {name: value for name, value in given.items() if name in READ}

    def _check_labels(self, labels: Tensor, mask: Tensor) -> None:
        """Refuse labels (B x T) for which the loss reads a padded place, where a kept prefix has zeros."""
        if labels.shape != mask.shape:  # of an example, not of its tokens
            return
        asked = labels.ne(IGNORED)
        if (asked & mask.eq(0)).any():
            raise ValueError(
                "labels lie at padded places, where a kept prefix has nothing: set them to -100, as the loss should "
                "not read them anyway"
            )
        base: Any = self.prefix.model
        if shifts_by_class(base) and (asked[:, 1:] & mask[:, :-1].eq(0)).any():
            raise ValueError(
                f"{type(base).__name__} predicts a token from the place before it, which for the first token of a row "
                "that is padded on the left is padding, where a kept prefix has nothing: set the label of each row's "
                "first token to -100, or pad on the right"
            )

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
        if model is not self.prefix.model:
            return
        self.batch = []
        for module, mode in self.modes.items():
            module.training = mode
        self.modes = {}
        for block in self.checkpointed:
            block.gradient_checkpointing = True
        self.checkpointed = []


class _Through:
    """A block's forward by way of a cache; a copy of the block has its own."""

    def __init__(self, cache: PrefixCache, block: nn.Module, forward: Any) -> None:
        self.cache = cache
        self.block = block
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.cache._block(self.block, self.forward, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return MethodType(type(self.block).forward, memo[id(self.block)]) if id(self.block) in memo else self


def _check_rope(config: Any) -> None:
    """Refuse positions whose rotation depends on the other rows of a batch."""
    given = getattr(config, "rope_parameters", None) or {}
    for part in (given, *(each for each in given.values() if isinstance(each, dict))):
        if part.get("rope_type") in ROPE_BY_BATCH:
            raise ValueError(
                f"rope_type={part['rope_type']!r} turns positions by the longest row of a batch, so the prefix of a "
                "row is not the same in every batch: leave the prefix cache out"
            )


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
    # Positions that begin anew are taken for packed rows where no mask is given, and not where one is.
    packed = position_ids is not None and attention_mask is None
    present = (token_type_ids is not None, position_ids is not None, packed)
    rows = []
    for each in stacked:
        (places,) = each[1].nonzero(as_tuple=True)
        first, end = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
        content = each[:, first:end].contiguous().numpy().tobytes()
        place = first if position_ids is None else 0  # without given positions, they are counted from the row's start
        key = hashlib.blake2b(f"{present} {place} ".encode() + content, digest_size=16).hexdigest()
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
    so the order and the padding of batches may change. A batch with a row that is not kept runs the prefix for all of
    its rows. Evaluation and passes without gradients run the whole network, and so does ``torch.compile``. Under DDP
    each process keeps the rows it has seen, so with shuffled data hits come late.

    A run with the cache equals one without: bit for bit where a row was first seen in a batch of the same rows and
    lengths, since the processor's matrix products round by the shape of a batch; else to rounding. ``half`` rounds
    what is kept. What is kept is forgotten when a weight of the prefix changes, and deleted at the end.

    Args:
        model: The model, its paths on it; wrapped by PEFT or not.
        ram_bytes: What may be kept in memory.
        folder: Where the rest goes, as safetensors; without one, batches with a row beyond it run the prefix.
        half: Keep 16 bits of each number, as bfloat16.
        evaluating: Put the prefix in evaluation mode while the rest trains; without it, active dropout is refused.

    Raises:
        ValueError: Something trains in block 0 or before it, or comes to train in the prefix; the prefix draws random
            numbers, is sharded, or depends on more than the tokens of a row.
    """
    place = None if folder is None else Path(folder) / f"prefix-{rank()}"
    rows = Rows(ram_bytes, place, torch.bfloat16 if half else None)
    with PrefixCache(prefix_of(model), rows, evaluating=evaluating).attached() as cache:
        yield cache
