"""How far a search is: after every pass over a batch it tells whoever watches, and nobody else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

logger = logging.getLogger("rankwise")
Watcher = Callable[[str, int, int], None]
"""Called with what is done, the passes made, and how many there will be at most (0 where that is not known)."""


class _Work:
    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0


_WATCHER: ContextVar[Watcher | None] = ContextVar("rankwise_watcher", default=None)
_WORK: ContextVar[_Work | None] = ContextVar("rankwise_work", default=None)


def watched() -> bool:
    """Tell whether somebody watches."""
    return _WATCHER.get() is not None


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Tell a watcher of every pass made inside: at the start with 0, at the end, also after an error, with the total.

    Args:
        watcher: Called with (what, done, total).
    """
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


@contextmanager
def work(what: str, total: int) -> Iterator[None]:
    """Say what is done inside; work inside other work counts as part of it.

    Args:
        what: A few words: ``scoring 50 paths by grad_norm``.
        total: How many passes there will be at most; 0 where that is not known.
    """
    if _WORK.get() is not None:
        yield
        return
    logger.info("%s%s", what, f", {total} passes" if total else "")
    own = _Work(what, total)
    token = _WORK.set(own)
    try:
        _tell(own)
        yield
    finally:
        _WORK.reset(token)  # before the watcher is told, whose error must not leave it set
        own.done = own.total = max(own.done, 1)
        _tell(own)


def passed() -> None:
    """Count one pass."""
    own = _WORK.get()
    if own is not None:
        own.done += 1
        _tell(own)


def _tell(own: _Work) -> None:
    watcher = _WATCHER.get()
    if watcher is not None:
        watcher(own.what, own.done, own.total)
