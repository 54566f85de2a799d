"""The hooks of one block: they read the sources of its paths and add to their destinations.

At each point that the forward pass comes to, the tensor ``x`` there becomes ``x + sum s B A source`` over the paths
that end there, and is kept for those that start there. With ``h`` the block's input, ``u`` its mid, ``u_prev`` the mid
of the block before, ``P`` the map ``s B A dropout(.)`` of a path, and norms after the sums (where they lie inside the
branches, without the ``LN`` around them)::

    u   = LN(h + SA(h) + P_res1(h) + P_cut(u_prev))
    out = LN(u + FFN(u) + P_res2(u) + P_in(h))

``shortcut_norm="reapply"`` is the paper's form (arXiv 2406.14956)::

    u   = LN(LN(h + SA(h) + P_res1(h)) + P_cut(u_prev))
    out = LN(LN(u + FFN(u) + P_res2(u)) + P_in(h))

A block's ``forward`` may run twice for one call: gradient checkpointing runs it again in the backward pass. Hooks on
the block itself run once, those on modules inside it run again. So what a path inside the block reads is read inside,
and what crosses the border of a block goes through the call's arguments, never through an attribute that a second
forward pass would have overwritten by then.
"""

from __future__ import annotations

import copy
import threading
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.utils.generic import ModelOutput

from rankwise.rules.kinds import ATTENTION_SUM, BLOCK_INPUT, BLOCK_KINDS, FEED_FORWARD_SUM, MID, Kind
from rankwise.wiring.anatomy import Anatomy, Point
from rankwise.wiring.block_host import BlockHost
from rankwise.wiring.checkpointing import is_reentrant, refuse_again

MID_KEYWORD = "rankwise_mid_before"  # the keyword that brings u_prev into a block, checkpointed or not
U_OUT, CARRIED, SENT, RUNNING = "u_out", "carried", "sent", "running"  # see Flow
STREAM = "hidden_states"  # what transformers calls a block's first argument


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the activation that a module is called with."""
    found: Tensor = args[0] if args else kwargs[STREAM]
    return found


def with_first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor) -> tuple[Any, dict[str, Any]]:
    """Return the arguments with another activation."""
    return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, STREAM: value})


def output_tensor(output: Any) -> Tensor:
    """Return the activation among what a module returns: a tensor, a tuple or a ``ModelOutput``, where it is first."""
    found: Tensor = output[0] if isinstance(output, (tuple, ModelOutput)) else output
    return found


def with_output_tensor(output: Any, value: Tensor) -> Any:
    """Return a module's output with another activation."""
    if isinstance(output, ModelOutput):
        return type(output)(**{**output, next(iter(output)): value})
    return (value, *output[1:]) if isinstance(output, tuple) else value


INSIDE = [kind for kind in BLOCK_KINDS.values() if kind.name != "layer"]  # a span belongs to no single block
STARTING = {point: [kind for kind in INSIDE if kind.source == point] for point in (BLOCK_INPUT, MID)}
ENDING = {point: [kind for kind in INSIDE if kind.destination == point] for point in (ATTENTION_SUM, FEED_FORWARD_SUM)}


class Flow(threading.local):
    """What is under way in one block: activations of the forward pass of the thread that asks, and of no other.

    All of it lies in dictionaries that are made once: where torch.compile breaks a graph inside a block, or compiles
    block by block, it loses what was written to an attribute of an object of a thread's.

    Attributes:
        held: Each kind's source, from its point to the path's end.
        kept: The mid for the next block (``U_OUT``), and what is added apart (``CARRIED``, see ``Anatomy.carry``).
        marks: ``RUNNING`` in the call of the block, ``SENT`` while a mid is on its way into it.
    """

    def __init__(self) -> None:  # once a thread
        self.held: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}
        self.marks: dict[str, bool] = {}

    def forget(self) -> None:
        """Hold nothing."""
        for part in (self.held, self.kept, self.marks):
            part.clear()

    def marked(self, mark: str) -> bool:
        """Tell whether a mark is set."""
        return mark in self.marks


class Crossing(threading.local):
    """The mid that one block leaves to the next, by the number of the block it is for."""

    def __init__(self) -> None:  # once a thread; see Flow
        self.left: dict[int, Tensor] = {}

    def put(self, block: int, u: Tensor | None) -> None:
        """Leave a mid to a block."""
        self.left.clear()
        if u is not None:
            self.left[block] = u

    def take(self, block: int) -> Tensor | None:
        """Return what was left to a block; nothing is left afterwards."""
        u = self.left.get(block)
        self.left.clear()
        return u


class BlockTaps:
    """What one block's hooks know.

    Args:
        index: Number of the block.
        block: The block.
        anatomy: Where its points are.
        crossing: What goes from one block to the next, shared by all.

    Attributes:
        hosts: The block's paths by kind.
        after: The next block, whose ``cut`` reads this block's mid.
        flow: The activations under way.
    """

    def __init__(self, index: int, block: nn.Module, anatomy: Anatomy, crossing: Crossing) -> None:
        self.index = index
        self.block = block
        self.anatomy = anatomy
        self.crossing = crossing
        self.hosts: dict[str, BlockHost] = {}
        self.after: BlockTaps | None = None
        self.ends_outside = anatomy.feed_forward_sum[0] == ""
        self.flow = Flow()

    def __getstate__(self) -> dict[str, Any]:
        """Leave activations behind when copied."""
        return {name: value for name, value in self.__dict__.items() if name not in ("flow", "crossing")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start with none; what all blocks share is put back by ``Wiring``."""
        self.__dict__.update(state)
        self.flow, self.crossing = Flow(), Crossing()

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockTaps:
        """Copy with the block, and stay the same where a module inside it is copied alone, as PEFT does to train it."""
        if id(self.block) not in memo:
            return self
        copied = memo[id(self)] = object.__new__(BlockTaps)
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return copied

    def attach(self) -> list[RemovableHandle]:
        """Register the hooks; those on the block's output go before hooks that record it."""
        anatomy, block = self.anatomy, self.block
        attention = block.get_submodule(anatomy.attention)
        return [
            block.register_forward_hook(self._leave, prepend=True),
            block.register_forward_pre_hook(self._enter, with_kwargs=True),
            attention.register_forward_pre_hook(self._enter_attention, with_kwargs=True),
            self._hook(BLOCK_INPUT, anatomy.block_input),
            self._hook(ATTENTION_SUM, anatomy.attention_sum),
            *self._hook_norm(ATTENTION_SUM, anatomy.attention_sum),
            self._hook(MID, anatomy.mid),  # where it is the same place as the sum, after what is added there
            self._hook(FEED_FORWARD_SUM, anatomy.feed_forward_sum),
            *self._hook_norm(FEED_FORWARD_SUM, anatomy.feed_forward_sum),
        ]

    def _hook(self, point: str, place: Point) -> RemovableHandle:
        module = self.block.get_submodule(place[0])
        if place[1] == "input":
            return module.register_forward_pre_hook(_AtInput(self, point), with_kwargs=True)
        return module.register_forward_hook(_AtOutput(self, point), prepend=place[0] == "")

    def _hook_norm(self, point: str, place: Point) -> list[RemovableHandle]:
        if self.anatomy.norm == "pre":
            return []
        return [self.block.get_submodule(place[0]).register_forward_hook(_NormAgain(self, point))]

    def adapters(self, kind: str, norm: str | None = None) -> list[str]:
        """Return the active adapters with a path of a kind here; with ``norm`` those of that ``shortcut_norm``."""
        host = self.hosts.get(kind)
        if host is None:
            return []
        live = host.live()
        return live if norm is None else [a for a in live if host.gate(a).paths.norm == norm]

    def needs(self, kind: str) -> bool:
        """Tell whether a path of a kind reads its source in this pass."""
        return kind in self.hosts and self.hosts[kind].needs_source(self.adapters(kind))

    def _add(self, result: Tensor, kind: str, source: Tensor | None, adapters: list[str]) -> Tensor:
        """Return ``result + s B A dropout(source)`` of the adapters' paths of a kind."""
        if not adapters or (source is None and self.needs(kind)):  # the block before was dropped, so nothing crosses
            return result
        added: Tensor = self.hosts[kind](source, result, adapters)
        return added

    def at(self, point: str, x: Tensor) -> Tensor:
        """Return ``x + sum s B A source`` over the paths that end at a point; keep ``x`` for those that start there.

        ``cut`` and ``in`` with ``shortcut_norm="reapply"`` are added by ``norm_again``.

        Args:
            point: The point that the forward pass has come to.
            x: The tensor there (.., d), or its tokens flattened.
        """
        ending = ENDING.get(point, [])
        # On a block that takes its residual before this point, what is added goes on apart, see ``Anatomy.carry``.
        apart = point == ATTENTION_SUM and self.anatomy.carry and any(self.adapters(kind.name) for kind in ending)
        result = x.new_zeros(x.shape) if apart else x
        for kind in ending:
            result = self._add(
                result, kind.name, self._source(kind), self.adapters(kind.name, "inside" if kind.crosses else None)
            )
        if apart:
            if self.flow.marked(RUNNING):
                self.flow.kept[CARRIED] = result
            result = x + result
        if point == FEED_FORWARD_SUM and CARRIED in self.flow.kept:
            result = result + self.flow.kept.pop(CARRIED).reshape(result.shape)
        self._keep(point, x)
        return result

    def norm_again(self, point: str, norm: nn.Module, normed: Tensor) -> Tensor:
        """Return ``LN(normed + s B A source)`` for each kind that the paper adds after the norm behind a point."""
        for kind in ENDING[point]:
            adapters = self.adapters(kind.name, "reapply") if kind.crosses else []
            if adapters:
                normed = norm.forward(self._add(normed, kind.name, self.flow.held.pop(kind.name, None), adapters))
        return normed

    def _source(self, kind: Kind) -> Tensor | None:
        """Return what a kind reads, and let go of it unless ``norm_again`` still needs it."""
        if kind.crosses and self.adapters(kind.name, "reapply"):
            return self.flow.held.get(kind.name)
        return self.flow.held.pop(kind.name, None)

    def _keep(self, point: str, x: Tensor) -> None:
        flow = self.flow
        for kind in STARTING.get(point, ()):
            # Run again in the backward pass, a checkpointed block comes to what is inside it only.
            comes = flow.marked(RUNNING) or not (self.ends_outside and kind.destination == FEED_FORWARD_SUM)
            if comes and self.needs(kind.name):
                flow.held[kind.name] = x
        if point == MID and flow.marked(RUNNING) and self.after is not None and self.after.needs("cut"):
            flow.kept[U_OUT] = x

    def _enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        u_prev = self.crossing.take(self.index)
        self.flow.forget()
        self.flow.marks[RUNNING] = True
        self._refuse_reentrant()
        if not self.needs("cut"):
            return None
        refuse_again(self.index, "cut")
        if u_prev is None:
            return None
        self.flow.marks[SENT] = True
        return args, {**kwargs, MID_KEYWORD: u_prev}

    def _refuse_reentrant(self) -> None:
        if not (self.block.training and is_reentrant(self.block) and self.block.gradient_checkpointing):
            return
        wrong = [kind for kind in self.hosts if kind != "layer" and (kind == "cut" or self.ends_outside)]
        for kind in wrong:
            if self.adapters(kind):
                raise ValueError(
                    f"block {self.index} has a {kind!r} path and reentrant gradient checkpointing, which would cut "
                    'the path\'s gradient off silently: say {"use_reentrant": False} where checkpointing is enabled '
                    "(gradient_checkpointing_kwargs, activation_checkpointing_kwargs), or leave this kind out"
                )

    def _enter_attention(self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if MID_KEYWORD in kwargs:
            self.flow.held["cut"] = kwargs[MID_KEYWORD]
            self.flow.marks.pop(SENT, None)
            return args, {name: value for name, value in kwargs.items() if name != MID_KEYWORD}
        if self.flow.marked(SENT):
            raise ValueError(
                f"block {self.index} does not pass the keyword arguments of its call on to {self.anatomy.attention!r}, "
                "so the mid of the block before never arrives: 'cut' paths can't be had in this family, leave them out"
            )
        return None

    def _leave(self, block: nn.Module, args: Any, output: Any) -> None:
        self.crossing.put(self.index + 1, self.flow.kept.get(U_OUT))
        self.flow.forget()


class _Hook:
    """A hook as an object, so that it is copied with what it is bound to; a closure would keep pointing back."""

    def __init__(self, taps: BlockTaps, point: str) -> None:
        self.taps = taps
        self.point = point


class _AtInput(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = first_tensor(args, kwargs)
        after = self.taps.at(self.point, before)
        return None if after is before else with_first_tensor(args, kwargs, after)


class _AtOutput(_Hook):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        before = output_tensor(output)
        after = self.taps.at(self.point, before)
        return None if after is before else with_output_tensor(output, after)


class _NormAgain(_Hook):
    def __call__(self, norm: nn.Module, args: Any, normed: Tensor) -> Any:
        after = self.taps.norm_again(self.point, norm, normed)
        return None if after is normed else after
