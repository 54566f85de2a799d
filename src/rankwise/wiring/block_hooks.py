"""The hooks of one block: they read the sources of its paths and add to their destinations.

Letters as in the paper: ``h`` the block's input, ``u`` its mid, ``u_prev`` the mid of the block before.

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

from rankwise.wiring.anatomy import Anatomy, Point
from rankwise.wiring.block_host import BlockHost
from rankwise.wiring.checkpointing import is_reentrant

MID_KEYWORD = "rankwise_mid_before"  # the keyword that brings u_prev into a block, checkpointed or not
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


class Flow(threading.local):
    """What is under way in one block: activations of the forward pass of the thread that asks, and of no other."""

    def __init__(self) -> None:  # once a thread; torch.compile loses track of attributes that only the class has
        self.forget()

    def forget(self) -> None:
        """Hold nothing."""
        self.h: Tensor | None = None
        self.u: Tensor | None = None
        self.u_prev: Tensor | None = None
        self.u_out: Tensor | None = None
        self.carried: Tensor | None = None
        self.sent = self.running = False


class Crossing(threading.local):
    """The mid that one block leaves to the next, with the number of the block it is for."""

    def __init__(self) -> None:  # once a thread; see Flow
        self.put(-1, None)

    def put(self, block: int, u: Tensor | None) -> None:
        """Leave a mid to a block."""
        self.block, self.u = block, u

    def take(self, block: int) -> Tensor | None:
        """Return what was left to a block; nothing is left afterwards."""
        u = self.u if self.block == block else None
        self.u = None
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
        handles = [
            block.register_forward_hook(self._leave, prepend=True),
            block.register_forward_pre_hook(self._enter, with_kwargs=True),
            attention.register_forward_pre_hook(self._enter_attention, with_kwargs=True),
            self._read(anatomy.block_input, self._see_input),
            self._change(anatomy.attention_sum, self._add_to_attention),
        ]
        if anatomy.norm == "post":
            norm = block.get_submodule(anatomy.attention_sum[0])
            handles.append(norm.register_forward_hook(self._norm_cut_again))
        handles.append(self._read(anatomy.mid, self._see_mid))
        handles.append(self._change(anatomy.feed_forward_sum, self._add_to_feed_forward))
        if anatomy.norm == "post":
            norm = block.get_submodule(anatomy.feed_forward_sum[0])
            handles.append(norm.register_forward_hook(self._norm_in_again))
        return handles

    def _read(self, point: Point, see: Any) -> RemovableHandle:
        module = self.block.get_submodule(point[0])
        if point[1] == "input":
            return module.register_forward_pre_hook(_ReadInput(see), with_kwargs=True)
        return module.register_forward_hook(_ReadOutput(see))

    def _change(self, point: Point, change: Any) -> RemovableHandle:
        module = self.block.get_submodule(point[0])
        if point[1] == "input":
            return module.register_forward_pre_hook(_ChangeInput(change), with_kwargs=True)
        return module.register_forward_hook(_ChangeOutput(change), prepend=point[0] == "")

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

    def _add(self, result: Tensor, kind: str, source: Tensor | None, norm: str | None = None) -> Tensor:
        adapters = self.adapters(kind, norm)
        if not adapters or (source is None and self.needs(kind)):  # the block before was dropped, so nothing crosses
            return result
        added: Tensor = self.hosts[kind](source, result, adapters)
        return added

    def _enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        u_prev = self.crossing.take(self.index)
        self.flow.forget()
        self.flow.running = True
        self._refuse_reentrant()
        if u_prev is None or not self.needs("cut"):
            return None
        self.flow.sent = True
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
        if MID_KEYWORD not in kwargs:
            return None
        self.flow.u_prev, self.flow.sent = kwargs[MID_KEYWORD], False
        return args, {name: value for name, value in kwargs.items() if name != MID_KEYWORD}

    def _wants_end(self, kind: str) -> bool:
        """Tell whether the feed-forward's sum is still to come and reads a source for this kind."""
        return (self.flow.running or not self.ends_outside) and self.needs(kind)

    def _see_input(self, h: Tensor) -> None:
        self.flow.h = h if self.needs("res1") or self._wants_end("in") else None

    def _add_to_attention(self, result: Tensor) -> Tensor:
        flow = self.flow
        if flow.sent:
            raise ValueError(
                f"block {self.index} does not pass the keyword arguments of its call on to {self.anatomy.attention!r}, "
                "so the mid of the block before never arrives: 'cut' paths can't be had in this family, leave them out"
            )
        h, flow.h = flow.h, flow.h if self._wants_end("in") else None
        if not self.anatomy.carry:
            result = self._add(result, "res1", h)
            return self._add(result, "cut", flow.u_prev, "inside")
        if not (self.adapters("res1") or self.adapters("cut")):
            return result
        added = self._add(result.new_zeros(result.shape), "res1", h)
        added = self._add(added, "cut", flow.u_prev, "inside")
        flow.carried = added if flow.running else None
        return result + added

    def _norm_cut_again(self, norm: nn.Module, args: Any, a: Tensor) -> Tensor:
        if not self.adapters("cut", "reapply"):
            return a
        again: Tensor = norm.forward(self._add(a, "cut", self.flow.u_prev, "reapply"))
        return again

    def _see_mid(self, u: Tensor) -> None:
        flow = self.flow
        flow.u_prev = None
        flow.u = u if self._wants_end("res2") else None
        flow.u_out = u if flow.running and self.after is not None and self.after.needs("cut") else None

    def _add_to_feed_forward(self, result: Tensor) -> Tensor:
        flow = self.flow
        u, flow.u = flow.u, None
        h, flow.h = flow.h, flow.h if self.adapters("in", "reapply") else None
        result = self._add(result, "res2", u)
        result = self._add(result, "in", h, "inside")
        if flow.carried is not None:
            result, flow.carried = result + flow.carried.reshape(result.shape), None
        return result

    def _norm_in_again(self, norm: nn.Module, args: Any, out: Tensor) -> Tensor:
        h, self.flow.h = self.flow.h, None
        if not self.adapters("in", "reapply"):
            return out
        again: Tensor = norm.forward(self._add(out, "in", h, "reapply"))
        return again

    def _leave(self, block: nn.Module, args: Any, output: Any) -> None:
        self.crossing.put(self.index + 1, self.flow.u_out)
        self.flow.forget()


class _Hook:
    """A hook as an object, so that it is copied with what it is bound to; a closure would keep pointing back."""

    def __init__(self, method: Any) -> None:
        self.method = method


class _ReadInput(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.method(first_tensor(args, kwargs))


class _ReadOutput(_Hook):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.method(output_tensor(output))


class _ChangeInput(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = first_tensor(args, kwargs)
        after = self.method(before)
        return None if after is before else with_first_tensor(args, kwargs, after)


class _ChangeOutput(_Hook):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        before = output_tensor(output)
        after = self.method(before)
        return None if after is before else with_output_tensor(output, after)
