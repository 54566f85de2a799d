"""When to search: a pure function of the number of optimizer steps done."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

FALLBACK_EVERY = 50


def check_length(name: str, length: Any) -> None:
    """Refuse a number of steps that is none, or is not whole: no step would ever equal what follows from it.

    Args:
        name: What the user calls it.
        length: The number, or None where it is unknown.

    Raises:
        ValueError: It is no whole number, or below 1.
    """
    if length is None:
        return
    if isinstance(length, bool) or not isinstance(length, Real) or length < 1 or length % 1:
        raise ValueError(
            f"{name}={length!r} must be a whole number of optimizer steps, at least 1 (with accumulation "
            "math.ceil(len(dataloader) / accumulation_steps)), or left out where it is unknown"
        )


@dataclass(frozen=True)
class Schedule:
    """The optimizer steps before which a search is due.

    Search ``k`` of an epoch of ``S`` steps comes before its step ``floor(k S / searches_per_epoch)``
    (arXiv 2406.14956, section 3); with ``every`` a search comes before each multiple of it. Steps count from 0, so
    "before step ``t``" means that ``t`` optimizer steps are done.

    Args:
        mode: ``"dynamic"``, ``"static"`` (one search) or ``"off"``.
        every: Optimizer steps between searches, or None to go by epochs.
        per_epoch: Searches in an epoch.
        steps_per_epoch: Optimizer steps in an epoch, or None where unknown: then every 50 steps.
        first: The step before which the first search comes: 0 where a probe can be had, else the number of steps that
            online scores are collected over.
        stop_at: Fraction of ``total_steps`` from which on no search is due.
        total_steps: Optimizer steps of the whole training, or None where unknown.
    """

    mode: str
    every: int | None = None
    per_epoch: int = 5
    steps_per_epoch: int | None = None
    first: int = 0
    stop_at: float = 1.0
    total_steps: int | None = None

    def __post_init__(self) -> None:
        """Refuse lengths that are none, and a fraction of an unknown whole."""
        check_length("steps_per_epoch", self.steps_per_epoch)
        check_length("total_steps", self.total_steps)
        if self.mode == "dynamic" and self.stop_at < 1.0 and self.total_steps is None:
            raise ValueError(
                f"stop_searching_at={self.stop_at} is a fraction of training, but its length is unknown here: set "
                "total_steps in the config, or train with Trainer or rankwise.Allocator(total_steps=...)"
            )

    @property
    def falls_back(self) -> bool:
        """Whether neither ``every`` nor the length of an epoch is known, so that 50 steps stand in."""
        return self.mode == "dynamic" and self.every is None and self.steps_per_epoch is None

    def next_search(self, done: int) -> int | None:
        """Return the smallest ``t >= done`` before whose step a search is due, or None if there is none."""
        if self.mode == "off":
            return None
        if done <= self.first:
            return self.first
        if self.mode == "static":
            return None
        step = self._next_regular(done)
        if self.total_steps is not None and step >= math.ceil(self.stop_at * self.total_steps):
            return None
        return step

    def _next_regular(self, done: int) -> int:
        if self.every is not None or self.steps_per_epoch is None:
            every = self.every or FALLBACK_EVERY
            return -(-done // every) * every
        size, count = self.steps_per_epoch, self.per_epoch
        epoch, within = divmod(done, size)
        starts = [k * size // count for k in range(count)]
        later = [start for start in starts if start >= within]
        return epoch * size + later[0] if later else (epoch + 1) * size
