"""When paths are merged and injected: pure functions of whole numbers."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass


def due_at(total: int, count: int) -> list[int]:
    """Return the epochs (or steps) at whose end an edit of one kind is due.

    ``count`` times every ``floor(total / (4 count + 1e-9)) + 1`` (arXiv 2503.00572, the published schedule), so that
    all are done after about a quarter of training.

    Args:
        total: Epochs (or steps) of the whole training.
        count: How many edits.
    """
    every = math.floor(total / (4 * count + 1e-9)) + 1
    return [every * (k + 1) for k in range(count)]


def ends_of(total: int, merges: int, injections: int, *, separate: bool = False) -> tuple[list[int], list[int]]:
    """Return when merges and when injections are due.

    Args:
        total: Epochs (or steps) of the whole training.
        merges: How many merges.
        injections: How many injections.
        separate: Where both are due at once, inject one later.
    """
    merge_ends = due_at(total, merges) if merges else []
    inject_ends: list[int] = []
    for end in due_at(total, injections) if injections else []:
        while separate and end in (*merge_ends, *inject_ends):
            end += 1
        inject_ends.append(end)
    return merge_ends, inject_ends


@dataclass(frozen=True)
class EditSchedule:
    """The ends of epochs (or steps) at which merges and injections are due.

    Args:
        total: Epochs (or steps) of the whole training.
        merges: How many merges.
        injections: How many injections.
        unit: ``"epochs"`` or ``"steps"``.
        separate: Where both are due at once, inject one later.

    Raises:
        ValueError: An edit is due after the first half of training; says what would fit.
    """

    total: int
    merges: int
    injections: int
    unit: str = "epochs"
    separate: bool = False

    def __post_init__(self) -> None:
        """Refuse edits that would not leave half of training to what they make."""
        last = self._last(self.total)
        if 2 * last > self.total:
            most = max(self.merges, self.injections)
            fits = next((n for n in range(most, 0, -1) if 2 * self._last(self.total, n) <= self.total), 0)
            longer = next(total for total in itertools.count(self.total) if 2 * self._last(total) <= total)
            raise ValueError(
                f"merges={self.merges}, injections={self.injections} in {self.total} {self.unit}: the last edit would "
                f"be due after {last} of them, which is not in the first half. "
                + (f"Lower both to at most {fits}, train for " if fits else "Train for ")
                + f"{longer} {self.unit}"
                + (", or set edit_unit='steps'" if self.unit == "epochs" else "")
            )

    def _last(self, total: int, most: int | None = None) -> int:
        """Return when the last edit is due, with at most so many of each kind."""
        merges, injections = (n if most is None else min(n, most) for n in (self.merges, self.injections))
        merge_ends, inject_ends = ends_of(total, merges, injections, separate=self.separate)
        return max([*merge_ends, *inject_ends], default=0)

    def due(self, end: int) -> tuple[bool, bool]:
        """Return whether a merge and an injection are due at the end of an epoch (or step), counted from 1."""
        merge_ends, inject_ends = ends_of(self.total, self.merges, self.injections, separate=self.separate)
        return end in merge_ends, end in inject_ends
