"""Rank-one components of a path: in which directions its matrix would have to move.

Letters: ``o`` and ``i`` output and input size, ``k`` components, ``G`` (o x i) the mean gradient of the loss,
``sigma_j, u_j, v_j`` its singular values and vectors, ``D_j`` (o x i) the direction of component ``j``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.paths.low_rank_path import LowRankPath
from rankwise.scores.recorder import Sums
from rankwise.scores.statistics import EXACT_BYTES, Statistic, WeightGradient
from rankwise.seeds import stable_seed

DIRECTIONS = ("adam", "sgd")


@dataclass(frozen=True)
class Directions:
    """The directions ``D_j = left_j right_j^T`` of one path.

    Args:
        left: Destination side, o x k.
        right: Source side, i x k.
    """

    left: Tensor
    right: Tensor

    def slopes(self, gradient: LowRankGradient | Tensor) -> Tensor:
        """Return ``lin_j = <G, D_j> = left_j^T G right_j`` (k,)."""
        if isinstance(gradient, Tensor):
            return ((gradient.to(self.left) @ self.right) * self.left).sum(0)
        return ((gradient.tall.to(self.left).T @ self.left) * (gradient.wide.to(self.left) @ self.right)).sum(0)


@dataclass(frozen=True)
class LowRankGradient:
    """``G`` as far as a sketch knows it: ``tall wide``.

    Args:
        tall: Orthonormal columns, o x q.
        wide: q x i.
    """

    tall: Tensor
    wide: Tensor


Gradients = dict[str, "Tensor | LowRankGradient"]


class TwoSidedSketch:
    """``G Omega`` (o x q) and ``Psi^T G`` (q' x i), with seeded Gaussian ``Omega`` (i x q) and ``Psi`` (o x q').

    Both are linear in ``G``, so they add up over steps and processes in one pass. With ``Q`` an orthonormal basis of
    ``G Omega``, ``G`` is close to ``Q (Psi^T Q)^+ Psi^T G`` (Tropp, Yurtsever, Udell, Cevher, SIAM J. Matrix Anal.
    Appl. 38(4), 2017, algorithm 4); ``q = 2 k + 1`` and ``q' = 2 q + 1`` as recommended there.

    Args:
        components: k.
        seed: Seeds the sketches, together with each path's name.
    """

    def __init__(self, components: int, seed: int) -> None:
        self.columns = 2 * components + 1
        self.rows = 2 * self.columns + 1
        self.seed = seed
        self.drawn: dict[str, tuple[Tensor, Tensor]] = {}

    def contribution(self, path: LowRankPath, x: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        """Return (G Omega, Psi^T G)."""
        omega, psi = (drawn.to(x) for drawn in self.matrices(path.name, g.shape[1], x.shape[1]))
        return g.T @ (x @ omega), (g @ psi).T @ x

    def matrices(self, name: str, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
        """Return ``Omega`` and ``Psi`` of a path, drawn at the first call."""
        if name not in self.drawn:
            generator = torch.Generator().manual_seed(stable_seed(self.seed, "two-sided sketch", name))
            omega = torch.randn(inputs, min(self.columns, inputs, outputs), generator=generator, device="cpu")
            self.drawn[name] = omega, torch.randn(outputs, min(self.rows, outputs), generator=generator, device="cpu")
        return self.drawn[name]

    def gradient(self, name: str, sums: tuple[Tensor, ...]) -> LowRankGradient:
        """Return what the sketches of a path say about its ``G``."""
        image, coimage = (tensor.double() for tensor in sums)
        psi = self.matrices(name, image.shape[0], coimage.shape[1])[1].to(image)
        tall = torch.linalg.qr(image).Q
        return LowRankGradient(tall, torch.linalg.lstsq(psi.T @ tall, coimage).solution)


def component_statistic(paths: Iterable[LowRankPath], components: int, *, parts: int, seed: int) -> Statistic:
    """Return what has to be summed to know the directions: ``G``, or sketches where all ``G`` take more than 256 MB.

    Args:
        paths: The candidates.
        components: How many directions are wanted of each.
        parts: How many sums are kept at a time.
        seed: Seeds the sketches.
    """
    exact = parts * sum(4 * path.lora_B.shape[0] * path.lora_A.shape[1] for path in paths)
    return WeightGradient() if exact <= EXACT_BYTES else TwoSidedSketch(components, seed)


def gradients_of(statistic: Statistic, means: Sums) -> Gradients:
    """Return each path's ``G``, exact or as its sketches know it; without those that no finite gradient reached."""
    finite = {name: tensors for name, tensors in means.items() if all(bool(t.isfinite().all()) for t in tensors)}
    if isinstance(statistic, TwoSidedSketch):
        return {name: statistic.gradient(name, tensors) for name, tensors in finite.items()}
    return {name: tensors[0] for name, tensors in finite.items()}


def singular_triplets(gradient: Tensor | LowRankGradient, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest ``k`` of ``u`` (o x k), ``sigma`` (k,) and ``v`` (i x k), in float64."""
    inner = (gradient if isinstance(gradient, Tensor) else gradient.wide).double()
    if inner.shape[0] > inner.shape[1]:
        right, sigma, left = _triplets(inner.T, components)
    else:
        left, sigma, right = _triplets(inner, components)
    return left if isinstance(gradient, Tensor) else gradient.tall.double() @ left, sigma, right


def _triplets(matrix: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest singular triplets of a matrix (m x n) with m <= n.

    The whole decomposition of all paths of MiniLM takes as long as the passes. The leading eigenvectors of ``M M^T``
    span the leading left vectors, and what ``M`` is in their span has k rows only.
    """
    k = min(components, matrix.shape[0])
    span = torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, -k:]
    inner, sigma, right = torch.linalg.svd(span.T @ matrix, full_matrices=False)
    return span @ inner, sigma, right.T


def directions_of(gradient: Tensor | LowRankGradient, components: int, matched: str) -> Directions:
    """Return the directions of a path's best rank-one components.

    ``"sgd"``: ``D_j = u_j v_j^T``, so ``lin_j = sigma_j``. ``"adam"``: ``D_j = sign(u_j) v_j^T``, so ``lin_j = sigma_j
    norm1(u_j)``: the first step of an Adam-like optimizer on ``B`` has entries of one size.

    Args:
        gradient: ``G``.
        components: k.
        matched: ``"adam"`` or ``"sgd"``.
    """
    u, _, v = singular_triplets(gradient, components)
    return Directions(u.sign() if matched == "adam" else u, v)


def truncation_of(gradient: Tensor | LowRankGradient, rank: int) -> Directions:
    """Return the terms of ``G_r``, the rank-r truncation of ``G``, as directions ``sigma_j u_j v_j^T``."""
    u, sigma, v = singular_triplets(gradient, rank)
    return Directions(u * sigma, v)
