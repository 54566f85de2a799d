from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rankwise import Inject, Merge
from rankwise.rules.edit_policy import Candidate, choose_injection, choose_merge


def single(scores: Sequence[float | None]) -> list[Candidate]:
    return [Candidate(f"layers.{block}.layer", block, block, score) for block, score in enumerate(scores)]


def span(first: int, last: int, score: float | None) -> Candidate:
    return Candidate(f"layers.{first}-{last}.layer", first, last, score)


def merge_of(first: int, second: int, survivor: int) -> Merge:
    return Merge(*(f"layers.{block}.layer" for block in (first, second, survivor)))


SIX = [0.5, 0.2, 0.3, 0.1, 0.4, 0.6]
TWELVE = [0.9, 0.8, 0.7, 0.1, 0.2, 0.9, 0.3, 0.05, 0.6, 0.6, 0.5, 0.4]


@pytest.mark.parametrize(
    ("scores", "options", "wanted"),
    [
        (SIX, {}, merge_of(2, 3, 2)),  # 0.4 is the lowest sum, 0.3 the higher of the two
        (SIX, {"survivor": "first"}, merge_of(2, 3, 2)),
        (SIX, {"select": "highest"}, merge_of(4, 5, 5)),
        (SIX, {"select": "highest", "survivor": "first"}, merge_of(4, 5, 4)),
        (TWELVE, {}, merge_of(3, 4, 4)),
        (TWELVE, {"select": "highest"}, merge_of(0, 1, 0)),
        ([0.5] * 6, {}, merge_of(0, 1, 0)),  # exact ties: the first pair, and its first path
        ([0.3, 0.1, 0.3, 0.1], {}, merge_of(0, 1, 0)),
        ([0.5, None, 0.1, 0.2], {}, merge_of(2, 3, 3)),  # an all-zero path is no candidate
        ([0.5, None, 0.1], {}, None),
        ([0.5], {}, None),
        ([], {}, None),
        (SIX, {"injected": {5}, "strict_neighbours": True, "select": "highest"}, merge_of(0, 1, 0)),
    ],
)
def test_the_pair_that_is_merged(scores: list[Any], options: dict[str, Any], wanted: Merge | None) -> None:
    assert choose_merge(single(scores), **options) == wanted


def test_spans_merge_on_and_an_injected_block_is_no_bridge() -> None:
    chained = [span(0, 1, 0.1), *single([9, 9, 0.2, 0.9])[2:]]
    assert choose_merge(chained) == Merge("layers.0-1.layer", "layers.2.layer", "layers.2.layer")
    assert choose_merge(chained, max_span=2) == merge_of(2, 3, 3)
    assert choose_merge([single(SIX)[block] for block in (0, 2, 4)]) is None
    around = [single(SIX)[block] for block in (0, 1, 3, 4)]
    assert choose_merge(around, injected={2}) == merge_of(3, 4, 4)
    assert choose_merge(around, injected={2}, strict_neighbours=True) is None
    assert choose_merge(list(reversed(around)), injected={2}) == merge_of(3, 4, 4)


@pytest.mark.parametrize("seed", range(20))
def test_merges_against_a_plain_search(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = [float(score) for score in generator.integers(0, 5, size=12) / 4]
    best = min(itertools.pairwise(range(12)), key=lambda pair: (scores[pair[0]] + scores[pair[1]], pair[0]))
    keeps = best[1] if scores[best[1]] > scores[best[0]] else best[0]
    assert choose_merge(single(scores)) == merge_of(*best, keeps)


def test_the_path_that_is_replaced() -> None:
    assert choose_injection(single(SIX)) == Inject("layers.3.layer")
    assert choose_injection(single(SIX), select="highest") == Inject("layers.5.layer")
    assert choose_injection(single([0.2, 0.2, 0.2])) == Inject("layers.0.layer")
    assert choose_injection([span(0, 1, 0.0), *single([9, 9, 0.5])[2:]]) == Inject(
        "layers.2.layer"
    )  # merged: passed over
    assert choose_injection([span(0, 2, 0.0)]) is None
    assert choose_injection(single([None, 0.4])) == Inject("layers.1.layer")
    assert choose_injection(single([None])) is None
