"""Choosing rank-one components together, so that two that do the same are not both paid for. Pure numpy.

Letters: ``n`` components, ``m`` examples; ``lin`` (n,) the slope of the loss along each component, ``H`` (n x n) the
curvature between them, ``S`` a set of components, ``lambda = damping mean(diag H)``.

``gain(S) = 1/2 lin_S^T (H_SS + lambda I)^-1 lin_S`` is what the quadratic model of the loss falls by at best along the
components of ``S``. With ``H = A^T A / N`` from the (m x n) matrix ``A`` of one number per example and component, ``H``
itself is never formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
MOST_DENSE = 2_000  # components up to which H is formed (32 MB)


class Curvature(Protocol):
    """The matrix ``H + lambda I``, conditioned on what was picked so far."""

    def diagonal(self) -> Vector:
        """Return the diagonal of ``H`` (n,), before any pick."""
        ...

    def column(self, j: int) -> Vector:
        """Return what component ``j`` shares with every other (n,), given the picks: the Schur complement's column."""
        ...

    def pick(self, j: int, column: Vector, variance: float) -> None:
        """Condition on ``j``, whose column and diagonal entry (``lambda`` included) are given."""
        ...


def curvature_of(examples: Vector, terms: int) -> Curvature:
    """Return ``H = A^T A / N`` in the form that is quickest to choose by: whole for few components, else never formed.

    Args:
        examples: ``A``, m x n: one number per example and component.
        terms: ``N``, the number of loss terms.
    """
    if examples.shape[1] > MOST_DENSE:
        return ExampleCurvature(examples, terms)
    scaled = np.asarray(examples, dtype=np.float64)
    return DenseCurvature(scaled.T @ scaled / terms)


class DenseCurvature:
    """``H`` given whole; the picks are the rows of a pivoted Cholesky factor.

    Args:
        matrix: ``H``, n x n, symmetric and positive semi-definite.
    """

    def __init__(self, matrix: Vector) -> None:
        self.matrix = np.asarray(matrix, dtype=np.float64)
        self.factor = np.empty((16, len(self.matrix)))
        self.picked = 0

    def diagonal(self) -> Vector:
        """Return the diagonal of ``H``."""
        return self.matrix.diagonal().copy()

    def column(self, j: int) -> Vector:
        """Return ``H_j - L^T l_j`` with the rows ``L`` of the factor so far."""
        rows = self.factor[: self.picked]
        found: Vector = self.matrix[j] - rows[:, j] @ rows
        return found

    def pick(self, j: int, column: Vector, variance: float) -> None:
        """Add a row to the factor."""
        if self.picked == len(self.factor):
            self.factor = np.concatenate([self.factor, np.empty_like(self.factor)])
        self.factor[self.picked] = column / np.sqrt(variance)
        self.picked += 1


class ExampleCurvature:
    """``H = A^T A / N`` from one number per example and component; ``H`` is never formed.

    Keeps ``P = (I + A_S A_S^T / (N lambda))^-1`` (m x m), so that the conditioned column of ``j`` is ``A^T P a_j / N``.

    Args:
        examples: ``A``, m x n.
        terms: ``N``.
    """

    def __init__(self, examples: Vector, terms: int) -> None:
        scaled = np.asarray(examples, dtype=np.float64) / np.sqrt(terms)
        # Only A^T A counts, so no more rows are needed than there are components.
        self.rows = np.ascontiguousarray(np.linalg.qr(scaled, mode="r") if len(scaled) > scaled.shape[1] else scaled)
        self.projection = np.eye(len(self.rows))

    def diagonal(self) -> Vector:
        """Return the diagonal of ``H``."""
        found: Vector = np.einsum("mn,mn->n", self.rows, self.rows)
        return found

    def column(self, j: int) -> Vector:
        """Return ``A^T P a_j / N``."""
        found: Vector = (self.projection @ self.rows[:, j]) @ self.rows
        return found

    def pick(self, j: int, column: Vector, variance: float) -> None:
        """Take the component's direction out of ``P``."""
        seen = self.projection @ self.rows[:, j]
        self.projection -= np.outer(seen, seen / variance)


@dataclass(frozen=True)
class Picks:
    """Components in the order they were picked.

    Args:
        order: Their indices.
        marginals: What each added to the gain of those before it.
        costs: What each costs.
        left: What is left of the budget.
    """

    order: tuple[int, ...]
    marginals: tuple[float, ...]
    costs: tuple[int, ...]
    left: int

    def curve(self) -> tuple[Vector, Vector]:
        """Return cumulative cost and cumulative gain, pick by pick."""
        return np.cumsum(self.costs).astype(np.float64), np.cumsum(self.marginals)


def damping_of(diagonal: Vector, damping: float) -> float:
    """Return ``lambda = damping mean(diag H)``.

    Raises:
        ValueError: ``damping`` is not positive, or all curvatures are zero or not finite.
    """
    if not damping > 0:
        raise ValueError(f"damping={damping!r} must be positive: two components that do the same would divide by zero")
    mean = float(np.mean(diagonal))
    if not 0 < mean < np.inf:
        raise ValueError(
            f"the mean curvature of the {len(diagonal)} components is {mean}: the model's prediction does not depend "
            "on them, or the loss overflowed"
        )
    return damping * mean


def joint_gain(lin: Vector, curvature: Vector, chosen: Sequence[int], *, damping: float = 1.0) -> float:
    """Return ``1/2 lin_S^T (H_SS + lambda I)^-1 lin_S``.

    Args:
        lin: The slope of each component (n,).
        curvature: ``H``, n x n.
        chosen: ``S``.
        damping: ``lambda`` is this times the mean of the diagonal of the whole ``H``.
    """
    matrix = np.asarray(curvature, dtype=np.float64)
    lam = damping_of(matrix.diagonal(), damping)
    some = np.asarray(chosen, dtype=np.int64)
    slopes = np.asarray(lin, dtype=np.float64)[some]
    block = matrix[np.ix_(some, some)] + lam * np.eye(len(some))
    return float(slopes @ np.linalg.solve(block, slopes)) / 2


def choose_jointly(
    lin: Vector,
    curvature: Curvature,
    costs: Sequence[int],
    budget: int,
    *,
    owners: Sequence[int] | None = None,
    damping: float = 1.0,
    breadth: float = 0.0,
) -> Picks:
    """Pick components greedily by marginal gain per cost until nothing fits into the budget.

    The marginal gain of ``j`` given ``S`` is ``resid_j^2 / (2 var_j)`` with ``resid = lin - H_.S (H_SS + lambda I)^-1
    lin_S`` and ``var`` the diagonal of the Schur complement; both follow each pick, as in a pivoted Cholesky
    factorisation. Equal values are taken by index.

    ``breadth`` shrinks towards the uniform choice: the d-th component of an owner has the priority ``(1 - breadth) v +
    breadth mean(v) / d`` with ``v`` the marginal gain per cost, its mean taken before the first pick. At 1 every owner
    gets its d-th component before any gets one more, exactly; within one round the better ones come first.

    Args:
        lin: The slope of each component (n,).
        curvature: The curvature, conditioned on nothing yet; it is used up.
        costs: The cost of each component, positive.
        budget: The largest total cost.
        owners: The owner of each component as a number from 0; each its own where left out.
        damping: ``lambda`` is this times the mean diagonal of ``H``.
        breadth: From 0 (by gain alone) to 1 (uniform over owners).

    Raises:
        ValueError: A number is out of range, or there is no curvature.
    """
    if not 0.0 <= breadth <= 1.0:
        raise ValueError(f"breadth={breadth!r} must lie in [0, 1]: 0 goes by gain alone, 1 is the uniform plan")
    price = np.asarray(costs, dtype=np.int64)
    if len(price) and price.min() <= 0:
        raise ValueError(f"costs must be positive, got {price.min()}")
    resid = np.asarray(lin, dtype=np.float64).copy()
    variance = curvature.diagonal()
    variance += damping_of(variance, damping)
    owner = np.arange(len(price)) if owners is None else np.asarray(owners, dtype=np.int64)
    taken = np.zeros(int(owner.max()) + 1, dtype=np.int64)
    marginal = resid * resid / (2 * variance)
    level = float(np.mean(marginal / price))
    order: list[int] = []
    gains: list[float] = []
    left = budget
    waits = np.ones(len(price), dtype=bool)
    while (fits := waits & (price <= left)).any():
        value = marginal / price
        if breadth:
            priority = (1 - breadth) * value + breadth * level / (1 + taken[owner])
            fits &= priority == priority[fits].max()
        j = int(np.argmax(np.where(fits, value, -1.0)))
        order.append(j)
        gains.append(float(marginal[j]))
        waits[j] = False
        taken[owner[j]] += 1
        left -= int(price[j])
        column = curvature.column(j)
        curvature.pick(j, column, float(variance[j]))
        resid -= column * (resid[j] / variance[j])
        variance -= column * (column / variance[j])
        marginal = resid * resid / (2 * variance)
    return Picks(tuple(order), tuple(gains), tuple(int(price[j]) for j in order), left)
