"""The slot through which a model's first training forward wakes the search.

The tuner is below the search in the package, so it can't import it; the search puts itself here when rankwise is
imported.
"""

from __future__ import annotations

from typing import Protocol

from torch import nn

from rankwise.paths.path_set import PathSet


class Driver(Protocol):
    """What the tuner asks of the search."""

    def listen(self, paths: PathSet) -> None:
        """Start listening to the optimizer that owns the paths' parameters."""
        ...

    def wake(self, model: nn.Module, paths: PathSet) -> None:
        """See to it that a search has begun: a training forward of the model is about to happen."""
        ...

    def update_and_allocate(self, paths: PathSet) -> None:
        """Do what is due after an optimizer step, unless it was done already."""
        ...

    def forget(self, paths: PathSet) -> None:
        """Stop listening."""
        ...


class _Slot:
    driver: Driver | None = None


def install(driver: Driver) -> None:
    """Put the driver into the slot."""
    _Slot.driver = driver


def driver() -> Driver:
    """Return the driver, which importing rankwise puts into the slot."""
    assert _Slot.driver is not None
    return _Slot.driver
