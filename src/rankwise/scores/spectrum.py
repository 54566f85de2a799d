"""Singular values of a path, and the information score made of them.

Letters: ``sigma`` the singular values of ``B A`` (without ``s``), ``r`` the rank, ``k`` how many of the largest are
left out. ``B = Q_B R_B`` and ``A^T = Q_A R_A`` give ``B A = Q_B (R_B R_A^T) Q_A^T``, so ``sigma`` are those
of the ``r x r`` core ``R_B R_A^T``; the ``d x d`` product is never formed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rankwise.paths.low_rank_path import LowRankPath


@torch.no_grad()
def singular_values(path: LowRankPath) -> Tensor:
    """Return the ``r`` singular values of ``B A``, largest first, from the current weights, in float32 or wider."""
    b = path.lora_B if path.lora_B.dtype == torch.float64 else path.lora_B.float()
    a = path.lora_A.to(b.dtype)
    upper_b, upper_a = torch.linalg.qr(b, mode="r").R, torch.linalg.qr(a.T, mode="r").R
    return torch.linalg.svdvals(upper_b @ upper_a.T)


def sfs(path: LowRankPath, k: int = 1) -> float:
    """Return ``SFS = 1 - sum of the k largest sigma / sum of all sigma`` (arXiv 2503.00572, section 3.3).

    It does not depend on the scale of ``A``, ``B`` or ``s``. Low: few directions carry the path.

    Args:
        path: The path.
        k: How many of the largest singular values are left out, ``1 <= k < r``.

    Raises:
        ValueError: ``k`` is out of range, or all singular values are zero, as they are before the first step.
    """
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k < path.r:
        raise ValueError(f"k={k!r} must be a whole number with 1 <= k < r; {path.name} has r={path.r}")
    sigma = singular_values(path)
    if not bool(sigma.any()):
        raise ValueError(f"{path.name} has no SFS: its B A is all zero, as it is before the first optimizer step")
    return tail_share(sigma, k)


def tail_share(sigma: Tensor, k: int) -> float:
    """Return the share of all but the ``k`` largest singular values in their sum; ``sigma`` falls and is not all 0."""
    return 1.0 - float(sigma[:k].sum()) / float(sigma.sum())


def mean_sv(path: LowRankPath) -> float:
    """Return the mean of the ``r`` singular values of ``B A``; it grows with the scale of ``A`` and ``B``.

    The published code of arXiv 2503.00572 divides by ``d`` instead of ``r``, which gives the same order.
    """
    return float(singular_values(path).mean())
