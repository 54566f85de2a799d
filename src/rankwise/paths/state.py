"""What is on: a few integers per path and adapter that travel with the adapter's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from peft.tuners._buffer_dict import BufferDict


class Status(NamedTuple):
    """The structure record of one path.

    Args:
        enabled: Trains and contributes.
        contributing: Its output is added; a frozen path contributes without being enabled.
        first: First block of its span, -1 outside the blocks.
        last: Last block of its span.
        available: Whether it may be switched on: LoRA that waits to be injected is not, nor is a path that was merged
            into another or replaced.
    """

    enabled: bool
    contributing: bool
    first: int
    last: int
    available: bool


class AllocationState(BufferDict):
    """The status of one module's paths, one integer tensor of shape (5,) per adapter.

    The tensors are persistent buffers, so the allocation is saved and restored with the weights by everything that
    saves and restores weights: ``save_pretrained``, ``from_pretrained``, ``load_adapter`` of PEFT and of transformers,
    a Trainer's checkpoints. What the forward pass reads is a copy in plain Python, renewed whenever a tensor is put in
    place, so that it never waits for a device; ``stale`` notices a tensor that was written in place, as averages of
    weights are.
    """

    status: dict[str, Status]
    marks: Mapping[str, tuple[int, int]] = MappingProxyType({})  # of the tensors, when they were read or written here

    def __init__(self) -> None:
        super().__init__(persistent=True)
        self.status = {}

    def put(self, adapter: str, status: Status, device: torch.device | None = None) -> None:
        """Set the status of an adapter's path; ``device`` is where a new tensor is made."""
        values = torch.tensor([int(value) for value in status], dtype=torch.int64, device="cpu")
        if adapter not in self:
            self[adapter] = values.to(device if device is not None and device.type != "meta" else "cpu")
        self.write_(adapter, values)
        self.status[adapter] = status

    def write_(self, adapter: str, values: torch.Tensor) -> None:
        """Bring a tensor up to a status that is known already."""
        self[adapter].copy_(values)
        self.marks = {**self.marks, adapter: _mark(self[adapter])}

    def remove(self, adapter: str) -> None:
        """Forget an adapter, unless PEFT has let it."""
        if adapter in self:
            del self[adapter]

    def __delitem__(self, adapter: str) -> None:
        """Forget an adapter's status with its tensor."""
        super().__delitem__(adapter)
        self.status.pop(adapter, None)

    def stale(self, adapter: str) -> bool:
        """Tell whether somebody else has written to an adapter's tensor since it was read or written here."""
        tensor = self._buffers.get(adapter)  # transformers takes it away without asking
        return tensor is not None and self.marks.get(adapter) != _mark(tensor)

    def read(self, adapter: str) -> None:
        """Take an adapter's status from its tensor, if that has values."""
        tensor = self[adapter]
        if _has_values(tensor):
            enabled, contributing, first, last, available = tensor.tolist()
            self.status[adapter] = Status(bool(enabled), bool(contributing), first, last, bool(available))
        self.marks = {**self.marks, adapter: _mark(tensor)}

    def _read(self) -> None:
        for adapter in self:
            self.read(adapter)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._read()

    def __setattr__(self, name: str, value: Any) -> None:
        """Read the status again when a loader puts a tensor in place by assignment."""
        super().__setattr__(name, value)
        if name in self.__dict__.get("_buffers", {}) and _has_values(value):
            self._read()


def check_name(adapter: str) -> None:
    """Refuse a name for an adapter that a module has for itself.

    Raises:
        ValueError: Says so.
    """
    if hasattr(AllocationState(), adapter):
        raise ValueError(
            f"an adapter can't be called {adapter!r}, as modules that hold adapters by their names have an attribute "
            "of that name: give it another"
        )


def _has_values(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor can be read: one on the meta device can't, nor one of torch's stand-ins for one."""
    return type(tensor) is torch.Tensor and not tensor.is_meta


def _mark(tensor: torch.Tensor) -> tuple[int, int]:
    """Return what tells a tensor from another, a copy of it say, and how often it was written to, if that is known."""
    return id(tensor), -1 if tensor.is_inference() else tensor._version
