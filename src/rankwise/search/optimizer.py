"""Drives searches from the optimizer: torch calls these hooks around every optimizer step, in any training loop."""

from __future__ import annotations

import atexit
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from rankwise.paths.driver import install
from rankwise.paths.path_set import PathSet, holders, path_sets
from rankwise.search.listener import warn_if_idle
from rankwise.search.listeners import make_listener


class OptimizerDriver:
    """Listens to all optimizers while some model is being searched, and acts on the one that owns its paths.

    Path sets are held weakly: a model that is dropped takes its search with it.
    """

    def __init__(self) -> None:
        self._listening: weakref.WeakSet[PathSet] = weakref.WeakSet()
        self._handles: list[Any] = []
        self._running = False
        self._stepped: weakref.WeakSet[PathSet] = weakref.WeakSet()

    def listen(self, paths: PathSet) -> None:
        """Start listening for a path set."""
        if not self._handles:
            self._handles = [
                register_optimizer_step_pre_hook(self._before),
                register_optimizer_step_post_hook(self._after),
            ]
        self._listening.add(paths)

    def wake(self, model: nn.Module, paths: PathSet) -> None:
        """Begin a path set's search, making its allocator if it has none."""
        listener = paths.session.listener or make_listener(model, paths)
        if not listener.begun:
            listener.begin()

    def forget(self, paths: PathSet) -> None:
        """Stop listening for a path set; the last one takes the hooks along."""
        self._listening.discard(paths)
        # Torch walks through its hooks while one of ours runs; then they stay, idle, for the next who listens.
        if not self._listening and not self._running:
            for handle in self._handles:
                handle.remove()
            self._handles = []

    def update_and_allocate(self, paths: PathSet) -> None:
        """Count a step that the hooks did not see, from an optimizer that is not torch's."""
        if paths.session.listener is not None and paths not in self._stepped:
            paths.session.listener.fold()
            paths.session.listener.after_step()
        self._stepped.discard(paths)

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if _inside_a_step():
            return
        with self._walking() as listening:
            for paths in listening:
                if paths.session.before_any_step is not None:
                    paths.session.before_any_step(optimizer)
                if paths.session.listener is not None and paths.session.listener.owns(optimizer):
                    paths.session.listener.before_step(optimizer)

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if _inside_a_step():
            return
        with self._walking() as listening:
            for paths in listening:
                if paths.session.listener is not None and paths.session.listener.owns(optimizer):
                    self._stepped.add(paths)
                    paths.session.listener.after_step()

    @contextmanager
    def _walking(self) -> Iterator[list[PathSet]]:
        """Give the path sets that are listened for, and keep the hooks where they are inside."""
        self._running = True
        try:
            yield list(self._listening)
        finally:
            self._running = False

    def warn_of_idle_searches(self) -> None:
        """Warn of every model that was trained, asked for a search, and never got one."""
        for paths in list(self._listening):
            warn_if_idle(paths)


def _inside_a_step() -> bool:
    """Tell whether the step whose hook this was called by is part of another, as one that calls ``super().step()``.

    The call stack says so; a count of its own would be off for good after a step that raised, or was interrupted.
    """
    step = sys._getframe(2)  # what torch puts around every optimizer's step
    above = step.f_back
    while above is not None and above.f_code is not step.f_code:
        above = above.f_back
    return above is not None


DRIVER = OptimizerDriver()
install(DRIVER)
atexit.register(DRIVER.warn_of_idle_searches)


def detach(model: nn.Module) -> None:
    """End all searches and scheduled edits of a model and remove the hooks that drove them; what is on stays.

    They stay ended until an ``Allocator`` or ``Editor`` is made for the model, as Trainer's callback does.

    Raises:
        ValueError: The model has no rankwise paths.
    """
    found = holders(model)
    if not found:
        path_sets(model)  # says that there are none
    for paths in [each for holder in found.values() for each in holder.rankwise_paths.values()]:
        paths.session.detached = True
        if paths.session.listener is not None:
            paths.session.listener.close()
