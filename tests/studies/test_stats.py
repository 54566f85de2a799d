"""The better rate and rank correlation, against hand-made cases."""

from __future__ import annotations

import pytest
from studies.where_it_pays.stats import better_rate, rank_correlation, reservation


def test_better_rate_is_the_lower_mean_among_the_fullest() -> None:
    assert better_rate({1e-2: {0: 1.0, 1: 3.0}, 3e-2: {0: 1.5, 1: 2.0}}) == 3e-2
    assert better_rate({1e-2: {0: 0.1}, 3e-2: {0: 1.5, 1: 2.0}}) == 3e-2  # one lucky seed does not win
    with pytest.raises(ValueError, match="no rate"):
        better_rate({})


def test_what_speaks_against_a_rate_is_said() -> None:
    inside = {1e-2: {0: 2.0, 1: 2.0}, 3e-2: {0: 1.0, 1: 1.5}, 6e-2: {0: 1.2, 1: 1.6}}
    assert reservation(inside, 3e-2) == ""
    assert reservation({3e-2: {0: 1.0}}, 3e-2) == "the only one"
    assert reservation({1e-2: {0: 2.0}, 3e-2: {0: 1.0}}, 3e-2) == "end of the grid"
    lucky = {**inside, 1e-2: {1: 1.4}}  # lower than 1.5 on the one seed that both have
    assert reservation(lucky, 3e-2) == "0.01 is lower on 1"


def test_rank_correlation_is_spearmans() -> None:
    worth = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    assert rank_correlation({name: value**3 for name, value in worth.items()}, worth) == pytest.approx(1)
    assert rank_correlation({"a": 4, "b": 3, "c": 2, "d": 1, "x": 9}, worth) == pytest.approx(-1)
    with pytest.raises(ValueError, match="three at least"):
        rank_correlation({"a": 1.0, "b": 2.0}, worth)
