"""The hooks of one block: they read the sources of its paths and add to their destinations.

Letters as in the paper: ``h`` the block's input, ``u`` its mid, ``u_prev`` the mid of the block before.

A block's ``forward`` may run twice for one call: gradient checkpointing runs it again in the backward pass. Hooks on
the block itself run once, those on modules inside it run again. So what a path inside the block reads is read inside,
and what crosses the border of a block goes through the call's arguments, never through an attribute that a second
forward pass would have overwritten by then.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.anatomy import Anatomy, Point
from rankwise.paths.block_host import BlockHost

CROSSING = "rankwise_mid_before"  # the keyword that brings u_prev into a block, checkpointed or not
STREAM = "hidden_states"  # what transformers calls a block's first argument


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the activation that a module is called with."""
    found: Tensor = args[0] if args else kwargs[STREAM]
    return found


def with_first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor) -> tuple[Any, dict[str, Any]]:
    """Return the arguments with another activation."""
    return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, STREAM: value})


def is_reentrant(block: nn.Module) -> bool:
    """Tell whether a block is checkpointed the reentrant way, whose first pass builds no graph."""
    function = block.__dict__.get("_gradient_checkpointing_func")
    return isinstance(function, partial) and bool(function.keywords.get("use_reentrant", True))


class BlockTaps:
    """What one block's hooks know.

    Args:
        index: Number of the block.
        block: The block.
        anatomy: Where its points are.

    Attributes:
        hosts: The block's paths by kind.
        after: The next block, whose ``cut`` reads this block's mid.
    """

    def __init__(self, index: int, block: nn.Module, anatomy: Anatomy) -> None:
        self.index = index
        self.block = block
        self.anatomy = anatomy
        self.hosts: dict[str, BlockHost] = {}
        self.after: BlockTaps | None = None
        self.norms = [block.get_submodule(name) for name, _ in (anatomy.attention_sum, anatomy.feed_forward_sum)]
        self.ends_outside = anatomy.feed_forward_sum[0] == ""
        self.forget()
        self.u_before: Tensor | None = None

    def forget(self) -> None:
        """Hold no tensor."""
        self.h: Tensor | None = None
        self.u: Tensor | None = None
        self.u_prev: Tensor | None = None
        self.u_out: Tensor | None = None
        self.carried: Tensor | None = None
        self.running = False

    def __getstate__(self) -> dict[str, Any]:
        """Leave activations behind when copied."""
        tensors = ("h", "u", "u_prev", "u_out", "u_before", "carried")
        return {**self.__dict__, **dict.fromkeys(tensors), "running": False}

    def attach(self) -> list[RemovableHandle]:
        """Register the hooks."""
        anatomy, block = self.anatomy, self.block
        attention = block.get_submodule(anatomy.attention)
        handles = [
            block.register_forward_pre_hook(self._enter, with_kwargs=True),
            attention.register_forward_pre_hook(self._enter_attention, with_kwargs=True),
            self._read(anatomy.block_input, self._see_input),
            self._change(anatomy.attention_sum, self._add_to_attention),
        ]
        if anatomy.norm == "post":
            handles.append(self._change((anatomy.attention_sum[0], "output"), self._norm_cut_again))
        handles.append(self._read(anatomy.mid, self._see_mid))
        handles.append(self._change(anatomy.feed_forward_sum, self._add_to_feed_forward))
        if anatomy.norm == "post":
            handles.append(self._change((anatomy.feed_forward_sum[0], "output"), self._norm_in_again))
        return [*handles, block.register_forward_hook(self._leave)]

    def _read(self, point: Point, see: Any) -> RemovableHandle:
        module = self.block.get_submodule(point[0])
        if point[1] == "input":
            return module.register_forward_pre_hook(_ReadInput(see), with_kwargs=True)
        return module.register_forward_hook(_ReadOutput(see))

    def _change(self, point: Point, change: Any) -> RemovableHandle:
        module = self.block.get_submodule(point[0])
        if point[1] == "input":
            return module.register_forward_pre_hook(_ChangeInput(change), with_kwargs=True)
        return module.register_forward_hook(_ChangeOutput(change))

    def adapters(self, kind: str, norm: str | None = None) -> list[str]:
        """Return the active adapters with a path of a kind here; with ``norm`` those of that ``shortcut_norm``."""
        host = self.hosts.get(kind)
        if host is None:
            return []
        live = host.live()
        return live if norm is None else [a for a in live if host.gate(a).paths.config.shortcut_norm == norm]

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
        crossing, self.u_before = self.u_before, None
        self.forget()
        self.running = True
        self._refuse_reentrant()
        return (args, {**kwargs, CROSSING: crossing}) if self.needs("cut") and crossing is not None else None

    def _refuse_reentrant(self) -> None:
        if not (self.block.training and is_reentrant(self.block) and self.block.gradient_checkpointing):
            return
        wrong = [kind for kind in self.hosts if kind != "layer" and (kind == "cut" or self.ends_outside)]
        for kind in wrong:
            if self.adapters(kind):
                raise ValueError(
                    f"block {self.index} has a {kind!r} path and reentrant gradient checkpointing, which would cut "
                    "the path's gradient off silently: enable checkpointing with "
                    'gradient_checkpointing_kwargs={"use_reentrant": False}, or leave this kind out'
                )

    def _enter_attention(self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if CROSSING not in kwargs:
            return None
        self.u_prev = kwargs[CROSSING]
        return args, {name: value for name, value in kwargs.items() if name != CROSSING}

    def _wants_end(self, kind: str) -> bool:
        """Tell whether the feed-forward's sum is still to come and reads a source for this kind."""
        return (self.running or not self.ends_outside) and self.needs(kind)

    def _see_input(self, h: Tensor) -> None:
        self.h = h if self.needs("res1") or self._wants_end("in") else None

    def _add_to_attention(self, result: Tensor) -> Tensor:
        h, self.h = self.h, self.h if self._wants_end("in") else None
        if not self.anatomy.carry:
            result = self._add(result, "res1", h)
            return self._add(result, "cut", self.u_prev, "inside")
        if not (self.adapters("res1") or self.adapters("cut")):
            return result
        added = self._add(result.new_zeros(result.shape), "res1", h)
        added = self._add(added, "cut", self.u_prev, "inside")
        self.carried = added if self.running else None
        return result + added

    def _norm_cut_again(self, a: Tensor) -> Tensor:
        if not self.adapters("cut", "reapply"):
            return a
        again: Tensor = self.norms[0].forward(self._add(a, "cut", self.u_prev, "reapply"))
        return again

    def _see_mid(self, u: Tensor) -> None:
        self.u_prev = None
        self.u = u if self._wants_end("res2") else None
        self.u_out = u if self.running and self.after is not None and self.after.needs("cut") else None

    def _add_to_feed_forward(self, result: Tensor) -> Tensor:
        u, self.u = self.u, None
        h, self.h = self.h, self.h if self.adapters("in", "reapply") else None
        result = self._add(result, "res2", u)
        result = self._add(result, "in", h, "inside")
        if self.carried is not None:
            result, self.carried = result + self.carried.reshape(result.shape), None
        return result

    def _norm_in_again(self, out: Tensor) -> Tensor:
        h, self.h = self.h, None
        if not self.adapters("in", "reapply"):
            return out
        again: Tensor = self.norms[1].forward(self._add(out, "in", h, "reapply"))
        return again

    def _leave(self, block: nn.Module, args: Any, output: Any) -> None:
        if self.after is not None:
            self.after.u_before = self.u_out
        self.forget()


class _Hook:
    """A hook as an object, so that it is copied with what it is bound to; a closure would keep pointing back."""

    def __init__(self, method: Any) -> None:
        self.method = method


class _ReadInput(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.method(first_tensor(args, kwargs))


class _ReadOutput(_Hook):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.method(output[0] if isinstance(output, tuple) else output)


class _ChangeInput(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = first_tensor(args, kwargs)
        after = self.method(before)
        return None if after is before else with_first_tensor(args, kwargs, after)


class _ChangeOutput(_Hook):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        before = output[0] if isinstance(output, tuple) else output
        after = self.method(before)
        if after is before:
            return None
        return (after, *output[1:]) if isinstance(output, tuple) else after
