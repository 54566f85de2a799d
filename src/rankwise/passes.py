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
    token = _WORK.set(_Work(what, total))
    _tell()
    try:
        yield
    finally:
        found = _WORK.get()
        if found is not None:
            found.done = found.total = max(found.done, 1)
            _tell()
        _WORK.reset(token)


def passed() -> None:
    """Count one pass."""
    found = _WORK.get()
    if found is not None:
        found.done += 1
        _tell()


def _tell() -> None:
    watcher, found = _WATCHER.get(), _WORK.get()
    if watcher is not None and found is not None:
        watcher(found.what, found.done, found.total)
