"""What is said about a few seeds: means, paired differences with an interval, and what could have been seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct
from scipy.stats import t as student


class Summary(NamedTuple):
    """Mean, standard deviation (n - 1) and number of some values; the deviation of one value is not a number.

    ``diverged`` counts the values that are no finite number; where there are any, neither are mean and deviation.
    """

    mean: float
    sd: float
    n: int
    diverged: int = 0

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return self.sd / math.sqrt(self.n)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return Student's interval of the mean, ``mean ± t sd / sqrt(n)``; not numbers where there is one value."""
        half = float(student.ppf((1 + level) / 2, self.n - 1)) * self.error if self.n > 1 else math.nan
        return self.mean - half, self.mean + half


class Difference(NamedTuple):
    """A mean difference over common seeds, and what can be said of it; of one seed nothing, all is not a number.

    Args:
        mean: Over the seeds.
        low: Lower end of Student's t interval.
        high: Its upper end.
        n: How many seeds.
        detectable: The smallest true difference that would have been seen.
        bootstrap_low: Lower end of the percentile bootstrap interval.
        bootstrap_high: Its upper end.
        diverged: How many values of the arm are no finite number; where there are any, nothing above is a number.
        baseline_diverged: The same of the baseline's.
        runs: How many runs the arm has, of which only ``n`` have a partner; none where that was not said.
    """

    mean: float
    low: float
    high: float
    n: int
    detectable: float
    bootstrap_low: float = math.nan
    bootstrap_high: float = math.nan
    diverged: int = 0
    baseline_diverged: int = 0
    runs: int | None = None


def summarise(values: Sequence[float]) -> Summary:
    """Return mean, standard deviation and number of values.

    Raises:
        ValueError: There are none.
    """
    if not len(values):
        raise ValueError("nothing to summarise: no run has finished")
    diverged = _infinite(values)
    if diverged:
        return Summary(math.nan, math.nan, len(values), diverged)
    return Summary(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan, len(values))


def paired(
    arm: Mapping[int, float], baseline: Mapping[int, float], *, draws: int = 10_000, level: float = 0.95, seed: int = 0
) -> Difference:
    """Return how much an arm differs from a baseline over the seeds that both have.

    Two intervals: Student's, ``mean ± t sd / sqrt(n)`` with ``n - 1`` degrees of freedom, which holds its level where
    the differences are normal, and the percentile bootstrap over seeds, which few seeds make too narrow: of normal
    differences a 95 % one has the true mean in 50 % of all cases with two seeds, 74 % with three, 84 % with five and
    89 % with ten. One seed has no interval.

    Args:
        arm: Value by seed.
        baseline: Value by seed.
        draws: Bootstrap samples.
        level: Of both intervals.
        seed: Seeds the bootstrap.

    Raises:
        ValueError: No seed is in both.
    """
    seeds = sorted(set(arm) & set(baseline))
    if not seeds:
        raise ValueError("no seed in common: nothing to pair")
    n = len(seeds)
    lost = [_infinite([values[s] for s in seeds]) for values in (arm, baseline)]
    if any(lost):
        nan = math.nan
        return Difference(nan, nan, nan, n, nan, diverged=lost[0], baseline_diverged=lost[1])
    differences = np.array([arm[s] - baseline[s] for s in seeds])
    mean = float(differences.mean())
    if n < 2:
        return Difference(mean, math.nan, math.nan, n, math.nan)
    picks = np.random.default_rng(seed).integers(n, size=(draws, n))
    ends = np.quantile(differences[picks].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    sd = float(differences.std(ddof=1))
    half = float(student.ppf((1 + level) / 2, n - 1)) * sd / math.sqrt(n)
    return Difference(mean, mean - half, mean + half, n, detectable(sd, n), float(ends[0]), float(ends[1]))


def _infinite(values: Sequence[float]) -> int:
    return sum(not math.isfinite(value) for value in values)


def detectable(sd: float, n: int, *, level: float = 0.05, power: float = 0.8) -> float:
    """Return the smallest true mean difference that a paired t-test of ``n`` pairs finds with the given power.

    ``c sd / sqrt(n)`` with the ``c`` at which the noncentral t distribution with ``n - 1`` degrees of freedom and
    noncentrality ``c`` lies above Student's ``1 - level / 2`` quantile with probability ``power``. That the test finds
    a difference in the wrong direction is not counted as power.

    Args:
        sd: Standard deviation of the differences; where it is zero, the seeds don't tell how much they would vary.
        n: Number of pairs; below two nothing can be told.
        level: Of the two-sided test.
        power: The chance to find it.
    """
    if n < 2 or sd == 0:
        return math.nan
    critical, central = student.ppf([1 - level / 2, power], n - 1)
    most = 2 * critical + 2 * abs(central) + 2  # above the root, which is near critical + central
    shift = brentq(lambda c: nct.sf(critical, n - 1, c) - power, 0, most)
    return float(shift) * sd / math.sqrt(n)
