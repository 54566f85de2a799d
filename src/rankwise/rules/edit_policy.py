"""Which paths are merged and which is replaced by LoRA. Pure functions on names and numbers that return edits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rankwise.rules.edits import Inject, Merge


@dataclass(frozen=True)
class Candidate:
    """A ``layer`` path as a policy sees it.

    Args:
        name: Its name.
        first: First block of its span.
        last: Last block of its span.
        score: Its score, or None where it has none (its matrix is all zero), which makes it no candidate.
    """

    name: str
    first: int
    last: int
    score: float | None


def choose_merge(
    candidates: Iterable[Candidate],
    *,
    select: str = "lowest",
    survivor: str = "higher",
    max_span: int | None = None,
    injected: Iterable[int] = (),
    strict_neighbours: bool = False,
) -> Merge | None:
    """Return the merge of the neighbouring pair with the lowest sum of scores, or None where there is no pair.

    MergeLoR2C (arXiv 2503.00572, section 3.4). The first of exactly tied pairs wins. The pair's survivor is the path
    with the higher score, the first where they are equal.

    Args:
        candidates: The paths that train.
        select: ``"lowest"`` or ``"highest"``.
        survivor: ``"higher"`` or ``"first"``.
        max_span: Blocks that the merged path may span.
        injected: Blocks whose path was replaced by LoRA.
        strict_neighbours: Leave out the paths beside an injected block.
    """
    beside = {block + side for block in injected for side in (-1, 1)} if strict_neighbours else set()
    usable = [c for c in candidates if not beside & {c.first, c.last}]
    ordered = sorted(usable, key=lambda candidate: candidate.first)
    pairs = [
        (a, b)
        for a, b in itertools.pairwise(ordered)
        if a.last + 1 == b.first and (max_span is None or b.last - a.first < max_span)
    ]
    scored = [(a, b, a.score + b.score) for a, b in pairs if a.score is not None and b.score is not None]
    if not scored:
        return None
    a, b, _ = _best(scored, select, lambda pair: pair[2])
    keeps_second = survivor == "higher" and b.score > a.score
    return Merge(a.name, b.name, b.name if keeps_second else a.name)


def choose_injection(candidates: Iterable[Candidate], *, select: str = "lowest") -> Inject | None:
    """Return the injection into the one-block path with the lowest score, or None where there is none.

    InjectLoR2C (arXiv 2503.00572, section 3.5). The first of exactly tied paths wins.

    Args:
        candidates: The paths that train; those that were merged are passed over.
        select: ``"lowest"`` or ``"highest"``.
    """
    single = [c for c in sorted(candidates, key=lambda c: c.first) if c.first == c.last and c.score is not None]
    return Inject(_best(single, select, lambda candidate: candidate.score).name) if single else None


def _best(items: Sequence[Any], select: str, score: Callable[[Any], float]) -> Any:
    return min(items, key=score) if select == "lowest" else max(items, key=score)
