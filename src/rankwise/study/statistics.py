"""What is said about a few seeds: means, paired differences with an interval, and what could have been seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student


class Summary(NamedTuple):
    """Mean, standard deviation (n - 1) and number of some values; the deviation of one value is not a number."""

    mean: float
    sd: float
    n: int

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return self.sd / math.sqrt(self.n)


class Difference(NamedTuple):
    """A mean difference over common seeds, its bootstrap interval, and the difference that would have been seen."""

    mean: float
    low: float
    high: float
    n: int
    detectable: float


def summarise(values: Sequence[float]) -> Summary:
    """Return mean, standard deviation and number of values.

    Raises:
        ValueError: There are none.
    """
    if not len(values):
        raise ValueError("nothing to summarise: no run has finished")
    return Summary(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan, len(values))


def paired(
    arm: Mapping[int, float], baseline: Mapping[int, float], *, draws: int = 10_000, level: float = 0.95, seed: int = 0
) -> Difference:
    """Return how much an arm differs from a baseline over the seeds that both have.

    The interval is the percentile bootstrap over seeds; with three seeds it can't be wider than their range, so it is
    a lower bound of the uncertainty.

    Args:
        arm: Value by seed.
        baseline: Value by seed.
        draws: Bootstrap samples.
        level: Of the interval.
        seed: Seeds the bootstrap.

    Raises:
        ValueError: No seed is in both.
    """
    seeds = sorted(set(arm) & set(baseline))
    if not seeds:
        raise ValueError("no seed in common: nothing to pair")
    differences = np.array([arm[s] - baseline[s] for s in seeds])
    picks = np.random.default_rng(seed).integers(len(seeds), size=(draws, len(seeds)))
    low, high = np.quantile(differences[picks].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    sd = float(differences.std(ddof=1)) if len(seeds) > 1 else math.nan
    return Difference(float(differences.mean()), float(low), float(high), len(seeds), detectable(sd, len(seeds)))


def detectable(sd: float, n: int, *, level: float = 0.05, power: float = 0.8) -> float:
    """Return the smallest true mean difference that a paired t-test of ``n`` pairs finds with the given power.

    ``(t(1 - level / 2) + t(power)) sd / sqrt(n)``, both quantiles of Student's t with ``n - 1`` degrees of freedom.

    Args:
        sd: Standard deviation of the differences.
        n: Number of pairs; below two nothing can be told.
        level: Of the two-sided test.
        power: The chance to find it.
    """
    if n < 2:
        return math.nan
    return float((student.ppf(1 - level / 2, n - 1) + student.ppf(power, n - 1)) * sd / math.sqrt(n))
