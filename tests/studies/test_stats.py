"""What a few seeds can say, against hand-made and simulated cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from studies.where_it_pays.stats import better_rate, detectable, paired, rank_correlation, summarise


def test_summary_of_known_values() -> None:
    found = summarise([1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(7 / 3)
    assert found.sd == pytest.approx(math.sqrt(7 / 3))
    assert found.error == pytest.approx(math.sqrt(7 / 9))
    assert math.isnan(summarise([1.0]).sd)
    with pytest.raises(ValueError, match="no run"):
        summarise([])


def test_paired_takes_common_seeds_only() -> None:
    found = paired({0: 1.0, 1: 2.0, 7: 100.0}, {0: 0.5, 1: 1.0, 2: -50.0})
    assert (found.mean, found.n) == (0.75, 2)
    assert found.low == 0.5
    assert found.high == 1.0
    with pytest.raises(ValueError, match="no seed in common"):
        paired({0: 1.0}, {1: 1.0})


def test_paired_removes_what_the_seed_does_to_both() -> None:
    rng = np.random.default_rng(0)
    noise = {seed: float(rng.normal(0, 10)) for seed in range(20)}
    found = paired({s: n - 0.3 + 0.01 * (s % 2) for s, n in noise.items()}, noise)
    assert found.high < -0.29
    assert found.low > -0.31


def test_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(300):
        values = dict(enumerate(rng.normal(0.5, 1.0, size=30).tolist()))
        found = paired(values, dict.fromkeys(values, 0.0), draws=500, seed=trial)
        hits += found.low <= 0.5 <= found.high
    assert 0.89 <= hits / 300 <= 0.98  # 95 %, a little less for a percentile interval of 30 values


def test_detectable_difference_is_found_with_its_power() -> None:
    from scipy.stats import ttest_1samp

    rng = np.random.default_rng(2)
    effect = detectable(1.0, 12)
    found = [ttest_1samp(rng.normal(effect, 1.0, size=12), 0.0).pvalue < 0.05 for _ in range(2_000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)
    assert math.isnan(detectable(1.0, 1))
    assert detectable(1.0, 3) > detectable(1.0, 5) > detectable(1.0, 20)


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
