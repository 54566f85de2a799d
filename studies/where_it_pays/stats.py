"""The better of some rates, what speaks against it, and rank correlation; the rest is ``rankwise.study.statistics``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import spearmanr


def better_rate(by_rate: Mapping[float, Mapping[int, float]]) -> float:
    """Return the rate with the lower mean among those with the most seeds.

    Args:
        by_rate: Losses by rate and seed.

    Raises:
        ValueError: There are none.
    """
    most = max((len(values) for values in by_rate.values()), default=0)
    if not most:
        raise ValueError("no rate has a finished run")
    return min(
        (rate for rate, values in by_rate.items() if len(values) == most),
        key=lambda rate: (float(np.mean(list(by_rate[rate].values()))), rate),
    )


def reservation(by_rate: Mapping[float, Mapping[int, float]], rate: float) -> str:
    """Return what there is to say against a rate: that it is the end of those that ran, that another may be better.

    Args:
        by_rate: Losses by rate and seed.
        rate: The one that was chosen.
    """
    said = []
    if rate in (min(by_rate), max(by_rate)):
        said.append("end of the grid" if len(by_rate) > 1 else "the only one")
    own = by_rate[rate]
    for other, losses in sorted(by_rate.items()):
        common = sorted(set(own) & set(losses))
        if len(losses) < len(own) and common and sum(losses[seed] - own[seed] for seed in common) < 0:
            said.append(f"{other:g} is lower on {len(common)}")
    return "; ".join(said)


def rank_correlation(scores: Mapping[str, float], worths: Mapping[str, float]) -> float:
    """Return Spearman's rank correlation over the names that both have.

    Args:
        scores: Score by path; higher is better.
        worths: Worth by path; higher is better.

    Raises:
        ValueError: Fewer than three names in common.
    """
    names = sorted(set(scores) & set(worths))
    if len(names) < 3:
        raise ValueError(f"a rank correlation of {len(names)} paths says nothing: three at least")
    return float(spearmanr([scores[n] for n in names], [worths[n] for n in names]).statistic)
