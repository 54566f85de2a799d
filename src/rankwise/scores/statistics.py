"""What is summed over tokens and steps while scores are collected.

Letters: ``n`` tokens, ``o`` and ``i`` output and input size, ``r`` rank, ``k`` sketch columns; ``x`` (n x i) the path's
source and ``g`` (n x o) the gradient of the loss at its destination.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from rankwise.paths.low_rank_path import LowRankPath
from rankwise.seeds import stable_seed

EXACT_BYTES = 256 * 2**20
AUTO_COLUMNS = 16


class Statistic(Protocol):
    """A sum over tokens, linear in ``g``, so that it adds up over steps and processes."""

    def contribution(self, path: LowRankPath, x: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors that these tokens add."""
        ...


class WeightGradient:
    """``G = g^T x`` (o x i): the gradient of the path's effective matrix, with no trainable W0 needed."""

    def contribution(self, path: LowRankPath, x: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        """Return (G,)."""
        return (g.T @ x,)


class SketchedGradient:
    """``G Omega / sqrt(k)`` (o x k) with a seeded Gaussian ``Omega`` (i x k).

    Its norm estimates the norm of ``G``: the square is unbiased, with relative standard deviation at most
    ``sqrt(2 / k)``.

    Args:
        columns: k.
        seed: Seeds ``Omega``, together with the path's name.
    """

    def __init__(self, columns: int, seed: int) -> None:
        self.columns = columns
        self.seed = seed
        self.omegas: dict[str, Tensor] = {}

    def contribution(self, path: LowRankPath, x: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        """Return (G Omega / sqrt(k),)."""
        omega = self.omegas.get(path.name)
        if omega is None or omega.device != x.device or omega.dtype != x.dtype:
            generator = torch.Generator().manual_seed(stable_seed(self.seed, "sketch", path.name))
            drawn = torch.randn(x.shape[1], self.columns, generator=generator, device="cpu", dtype=torch.float64)
            omega = self.omegas[path.name] = (drawn / self.columns**0.5).to(x)
        return (g.T @ (x @ omega),)


class FactorGradients:
    """``gA = s B^T G`` (r x i) and ``gB = s G A^T`` (o x r): the gradients of the factors, without forming ``G``."""

    def contribution(self, path: LowRankPath, x: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        """Return (gA, gB)."""
        a, b = path.lora_A.to(x.dtype), path.lora_B.to(x.dtype)
        return path.scaling * (g @ b).T @ x, path.scaling * g.T @ (x @ a.T)


class WeightFlow:
    """``sum over tokens of g . (W x)`` (a number) with ``W = |W0| + s |B| |A|``: ``sum W * G``, without ``G``."""

    def contribution(self, path: LowRankPath, x: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        """Return (sum W * G,)."""
        return ((g * (x @ path.effective_weight(absolute=True).to(x.dtype).T)).sum(),)


def gradient_statistic(
    proxy: str, score_on: str, paths: Iterable[LowRankPath], *, sketch: int | str | None, seed: int
) -> Statistic:
    """Return what a proxy of the gradient needs summed.

    Only ``grad_norm`` on the weight can be sketched; ``sketch="auto"`` does so when the exact sums of all paths would
    take more than 256 MB.

    Args:
        proxy: ``"grad_norm"`` or ``"snip"``.
        score_on: ``"weight"`` or ``"factors"``.
        paths: The candidates.
        sketch: Columns, ``"auto"`` or None for exact.
        seed: Seeds the sketch.
    """
    if score_on == "factors":
        return FactorGradients()
    if proxy != "grad_norm" or sketch is None:
        return WeightGradient()
    if sketch == "auto":
        bytes_exact = sum(4 * path.lora_B.shape[0] * path.lora_A.shape[1] for path in paths)
        return WeightGradient() if bytes_exact <= EXACT_BYTES else SketchedGradient(AUTO_COLUMNS, seed)
    return SketchedGradient(int(sketch), seed)
