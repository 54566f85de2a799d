"""The better rate and rank correlation, against hand-made cases."""

from __future__ import annotations

import pytest
from studies.where_it_pays.stats import better_rate, rank_correlation


def test_better_rate_is_the_lower_mean_among_the_fullest() -> None:
    assert better_rate({1e-2: {0: 1.0, 1: 3.0}, 3e-2: {0: 1.5, 1: 2.0}}) == 3e-2
    assert better_rate({1e-2: {0: 0.1}, 3e-2: {0: 1.5, 1: 2.0}}) == 3e-2  # one lucky seed does not win
    with pytest.raises(ValueError, match="no rate"):
        better_rate({})


def test_rank_correlation_is_spearmans() -> None:
    worth = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    assert rank_correlation({name: value**3 for name, value in worth.items()}, worth) == pytest.approx(1)
    assert rank_correlation({"a": 4, "b": 3, "c": 2, "d": 1, "x": 9}, worth) == pytest.approx(-1)
    with pytest.raises(ValueError, match="three at least"):
        rank_correlation({"a": 1.0, "b": 2.0}, worth)
