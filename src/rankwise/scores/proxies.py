"""The zero-cost saliency proxies: one number per path from what was summed over the scoring batches.

Letters: ``W`` a path's effective matrix (``W0 + s B A`` for a linear path), ``G`` the mean gradient of the loss with
respect to it, ``A``, ``B`` the factors and ``gA``, ``gB`` their mean gradients. The mean is taken over batches first,
the norm or absolute value once, so a score does not depend on how many batches there were.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rankwise.paths.low_rank_path import LowRankPath
from rankwise.rules.proxies import PROXIES
from rankwise.scores.recorder import Sums
from rankwise.seeds import stable_seed

Formula = Callable[[LowRankPath, tuple[Tensor, ...]], float]


def _norms(path: LowRankPath, gradients: tuple[Tensor, ...]) -> float:
    return sum(float(torch.linalg.vector_norm(gradient)) for gradient in gradients)


def _matrices(path: LowRankPath, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the matrices that the gradients belong to: (W,) or (A, B)."""
    return (path.effective_weight(),) if len(gradients) == 1 else (path.lora_A.detach(), path.lora_B.detach())


def _absolute_products(path: LowRankPath, gradients: tuple[Tensor, ...]) -> float:
    pairs = zip(_matrices(path, gradients), gradients, strict=True)
    return sum(float((theta * gradient).abs().sum()) for theta, gradient in pairs)


def _products(path: LowRankPath, sums: tuple[Tensor, ...]) -> float:
    if len(sums) == 1:  # the flow through W is summed as a number, see ``WeightFlow``
        return float(sums[0])
    return sum(float((theta * gradient).sum()) for theta, gradient in zip(_matrices(path, sums), sums, strict=True))


FORMULAS: dict[str, Formula] = {"grad_norm": _norms, "snip": _absolute_products, "synflow": _products}


@dataclass(frozen=True)
class Scores:
    """The scores of one search.

    Args:
        values: One score per path; minus infinity where none could be had.
        unscored: Paths that got the median because their matrix is still zero.
    """

    values: dict[str, float]
    unscored: tuple[str, ...] = ()


def score_without_data(proxy: str, names: list[str], seed: int) -> Scores:
    """Score paths with ``constant`` (all 1) or ``random`` (uniform in [0, 1), a function of seed and name)."""
    if proxy == "constant":
        return Scores(dict.fromkeys(names, 1.0))
    return Scores({name: float(np.random.default_rng(stable_seed(seed, "random", name)).random()) for name in names})


@torch.no_grad()
def score_from_means(proxy: str, paths: Mapping[str, LowRankPath], means: Sums) -> Scores:
    """Score paths with a proxy of the means that a recorder collected.

    A path whose matrix is still zero has no score of its own with ``snip`` and ``synflow`` and gets the median of the
    others (1 when there are no others, which makes the search a tie). A path without a finite score gets minus
    infinity, so it is chosen last, and a warning names it.

    Args:
        proxy: ``"grad_norm"``, ``"snip"`` or ``"synflow"``.
        paths: The candidates by name.
        means: What was collected for each; a path that no backward pass reached may be missing.
    """
    row, formula = PROXIES[proxy], FORMULAS[proxy]
    unscored = tuple(
        name for name in paths if name in means and row.blind_at_zero and _is_zero(paths[name], means[name])
    )
    values = {
        name: formula(path, means[name]) if name in means else math.nan
        for name, path in paths.items()
        if name not in unscored
    }
    known = [value for value in values.values() if math.isfinite(value)]
    middle = statistics.median(known) if known else 1.0
    checked = checked_scores(proxy, values).values | dict.fromkeys(unscored, middle)
    return Scores({name: checked[name] for name in paths}, unscored)


def checked_scores(proxy: str, values: Mapping[str, float]) -> Scores:
    """Return scores in which a path without a finite one has minus infinity, so that it is chosen last; warn of it."""
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        warnings.warn(
            f"{proxy} has no finite score for {', '.join(broken[:5])}{' and others' if len(broken) > 5 else ''}: "
            "chosen last; look for an overflow in the loss or a path that the loss does not depend on",
            stacklevel=3,
        )
    return Scores({**values, **dict.fromkeys(broken, -math.inf)})


def _is_zero(path: LowRankPath, means: tuple[Tensor, ...]) -> bool:
    matrix = path.effective_weight() if len(means) == 1 else path.lora_B
    return not bool(matrix.any())
