"""Edits: what a policy may do to a model, as data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Enable:
    """Switch a path on: it trains and contributes from the next forward pass on.

    Args:
        path: The path's name.
    """

    path: str


@dataclass(frozen=True)
class Disable:
    """Switch a path off, as the config's ``on_disable`` says.

    ``"keep"``: its weights and optimizer moments stay, its contribution vanishes. ``"reset"``: ``B`` becomes 0 and its
    moments are cleared. ``"freeze"``: it stops training but keeps contributing.

    Args:
        path: The path's name.
    """

    path: str


@dataclass(frozen=True)
class Merge:
    """Let one of two neighbouring ``layer`` paths span the blocks of both (MergeLoR2C, arXiv 2503.00572).

    The survivor keeps its weights, optimizer moments, rank and scale; from now on it runs from the input of the first
    block to the output of the last, and is named by that span: ``layers.1-2.layer``. The other is off for good and its
    optimizer state freed.

    Args:
        first: Name of the path in front.
        second: Name of the path behind it.
        survivor: Which of the two stays; the first if left out.
    """

    first: str
    second: str
    survivor: str | None = None


@dataclass(frozen=True)
class Inject:
    """Replace the ``layer`` path of one block by LoRA on its projections (InjectLoR2C, arXiv 2503.00572).

    The LoRA was there from the start, switched off; it trains from the next step on. The replaced path is off for good
    and its optimizer state freed.

    Args:
        path: Name of a path that spans one block.
    """

    path: str


Edit = Enable | Disable | Merge | Inject


def switches(before: Iterable[str], after: Iterable[str]) -> list[Edit]:
    """Return the edits that lead from one set of enabled paths to another: first off, then on, each in name order."""
    old, new = set(before), set(after)
    return [*map(Disable, sorted(old - new)), *map(Enable, sorted(new - old))]
