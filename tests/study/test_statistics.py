"""What a few seeds can say: against loops, enumeration, and simulated cases."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from rankwise.study.statistics import detectable, paired, summarise


def test_mean_and_deviation_are_those_of_a_loop() -> None:
    draw = random.Random(3)
    values = [draw.gauss(2.0, 0.5) for _ in range(7)]
    total = 0.0
    for value in values:
        total += value
    mean = total / 7
    squares = 0.0
    for value in values:
        squares += (value - mean) ** 2
    found = summarise(values)
    assert found.mean == pytest.approx(mean, rel=1e-14)
    assert found.sd == pytest.approx(math.sqrt(squares / 6), rel=1e-14)


def test_bootstrap_interval_is_that_of_all_resamples() -> None:
    """With four seeds all 256 resamples can be listed; their quantiles are what the draws estimate."""
    draw = random.Random(5)
    arm = {seed: draw.gauss(0, 1) for seed in range(4)}
    base = {seed: draw.gauss(0, 1) for seed in range(4)}
    differences = [arm[seed] - base[seed] for seed in range(4)]
    means = sorted(sum(pick) / 4 for pick in itertools.product(differences, repeat=4))
    found = paired(arm, base, draws=200_000)
    assert found.mean == pytest.approx(sum(differences) / 4, rel=1e-14)
    # an end may fall on a neighbouring resample, of which there are 256
    assert means[4] <= found.bootstrap_low <= means[9]
    assert means[-10] <= found.bootstrap_high <= means[-5]


def test_bootstrap_repeats_and_leaves_the_global_generators_alone() -> None:
    arm, base = {0: 0.1, 1: 0.4, 2: 0.2}, {0: 0.3, 1: 0.1, 2: 0.2}
    before = (random.getstate(), str(np.random.get_state()))  # noqa: NPY002 (it is what must not move)
    assert paired(arm, base) == paired(arm, base)
    assert (random.getstate(), str(np.random.get_state())) == before  # noqa: NPY002


def test_students_interval_covers_the_true_mean_as_often_as_it_says_and_the_bootstrap_of_few_seeds_does_not() -> None:
    rng = np.random.default_rng(4)
    for n, bootstrap in ((2, 0.50), (3, 0.74), (5, 0.84), (10, 0.89)):
        hits, picked = 0, 0
        for trial in range(400):
            values = dict(enumerate(rng.normal(0.5, 1.0, size=n).tolist()))
            found = paired(values, dict.fromkeys(values, 0.0), draws=400, seed=trial)
            hits += found.low <= 0.5 <= found.high
            picked += found.bootstrap_low <= 0.5 <= found.bootstrap_high
        assert hits / 400 == pytest.approx(0.95, abs=0.03)
        assert picked / 400 == pytest.approx(bootstrap, abs=0.06)  # as the docstring says


def test_one_seed_has_no_interval() -> None:
    found = paired({0: 1.0}, {0: 1.5})
    assert (found.mean, found.n) == (-0.5, 1)
    assert all(
        math.isnan(value)
        for value in (found.low, found.high, found.bootstrap_low, found.bootstrap_high, found.detectable)
    )


def test_detectable_difference_solves_its_equation() -> None:
    """The power of the t-test by integrating over the deviation, without the noncentral t of scipy."""
    from scipy.integrate import trapezoid
    from scipy.stats import norm, t

    def power(effect: float, n: int) -> float:
        freedom = n - 1
        chi = np.linspace(1e-6, 12, 200_001)  # sqrt of a chi-square: the deviation times sqrt(freedom)
        log = (freedom - 1) * np.log(chi) - chi**2 / 2 - (freedom / 2 - 1) * math.log(2) - math.lgamma(freedom / 2)
        bound = t.ppf(0.975, freedom) * chi / math.sqrt(freedom)
        return float(trapezoid(norm.sf(bound - effect * math.sqrt(n)) * np.exp(log), chi))

    for n, known in ((2, 11.55), (3, 3.264), (5, 1.682), (12, 0.8887), (30, 0.5292)):
        assert detectable(1.0, n) == pytest.approx(known, rel=5e-4)
        assert power(detectable(1.0, n), n) == pytest.approx(0.8, abs=1e-5)
        assert detectable(0.7, n) == pytest.approx(0.7 * detectable(1.0, n))
    assert math.isfinite(detectable(1.0, 2, level=0.01, power=0.9))
    assert detectable(1.0, 10, power=0.3) < detectable(1.0, 10)


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
    assert (found.bootstrap_low, found.bootstrap_high) == (0.5, 1.0)
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
        hits += found.bootstrap_low <= 0.5 <= found.bootstrap_high
    assert 0.89 <= hits / 300 <= 0.98  # 95 %, a little less for a percentile interval of 30 values


def test_detectable_difference_is_found_with_its_power() -> None:
    from scipy.stats import ttest_1samp

    rng = np.random.default_rng(2)
    effect = detectable(1.0, 12)
    found = [ttest_1samp(rng.normal(effect, 1.0, size=12), 0.0).pvalue < 0.05 for _ in range(2_000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)
    assert math.isnan(detectable(1.0, 1))
    assert math.isnan(detectable(0.0, 5)), "equal differences say nothing of how much they vary"
    assert detectable(1.0, 3) > detectable(1.0, 5) > detectable(1.0, 20)
