"""Choosing rank-one components together, so that two that do the same are not both paid for. Pure numpy.

Letters: ``n`` components, ``m`` examples; ``lin`` (n,) the slope of the loss along each component, ``H`` (n x n) the
curvature between them, ``S`` a set of components, ``lambda = damping mean(diag H)``.

``gain(S) = 1/2 lin_S^T (H_SS + lambda I)^-1 lin_S`` is what the quadratic model of the loss falls by at best along the
components of ``S``. With ``H = A^T A / N`` from the (m x n) matrix ``A`` of one number per example and component, ``H``
itself is never formed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Indices = NDArray[np.int64]
MOST_DENSE = 2_000  # components up to which H is formed (32 MB)
BLOCK = 64  # columns made at once
IN_ROUNDS = 0.98  # breadth from which on an owner's second component counts less than 1e-14


class Curvature(Protocol):
    """The matrix ``H + lambda I``, conditioned on what was picked so far."""

    def diagonal(self) -> Vector:
        """Return the diagonal of ``H`` (n,), before any pick."""
        ...

    def column(self, j: int, likely: Callable[[int], Indices]) -> Vector:
        """Return what component ``j`` shares with every other (n,), given the picks: the Schur complement's column.

        Args:
            j: The component.
            likely: Returns that many components which may be picked next, for work that is done for many at once.
        """
        ...

    def pick(self, variance: float) -> None:
        """Condition on the component asked for last, whose diagonal entry (``lambda`` included) is given."""
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
    """``H`` given whole; the picks are the rows ``L`` of a pivoted Cholesky factor.

    Args:
        matrix: ``H``, n x n, symmetric and positive semi-definite.
    """

    def __init__(self, matrix: Vector) -> None:
        self.matrix = np.asarray(matrix, dtype=np.float64)
        self.factor = np.empty((16, len(self.matrix)))
        self.picked = 0
        self.current = np.empty(0)

    def diagonal(self) -> Vector:
        """Return the diagonal of ``H``."""
        return self.matrix.diagonal().copy()

    def column(self, j: int, likely: Callable[[int], Indices]) -> Vector:
        """Return ``H_j - L^T l_j``."""
        rows = self.factor[: self.picked]
        self.current = self.matrix[j] - rows[:, j] @ rows
        return self.current

    def pick(self, variance: float) -> None:
        """Add a row to the factor."""
        if self.picked == len(self.factor):
            self.factor = np.concatenate([self.factor, np.empty_like(self.factor)])
        self.factor[self.picked] = self.current / np.sqrt(variance)
        self.picked += 1


class ExampleCurvature:
    """``H = A^T A / N`` from one number per example and component; ``H`` is never formed.

    With ``P = (I + A_S A_S^T / (N lambda))^-1`` (m x m) the conditioned column of ``j`` is ``A^T P a_j / N``. Columns
    are made for a block of likely picks at once, which one matrix product is much faster for, and conditioned on the
    picks of the block as they happen. ``[A | I]^T P a_j`` is followed rather than ``A^T P a_j``: its tail is what ``P``
    loses by a pick. ``A`` and the columns are in single precision, in which ``a_e`` is measured; sums over picks are in
    double precision.

    Args:
        examples: ``A``, m x n.
        terms: ``N``.
    """

    def __init__(self, examples: Vector, terms: int) -> None:
        scaled = np.asarray(examples, dtype=np.float64) / np.sqrt(terms)
        # Only A^T A counts, so no more rows are needed than there are components.
        kept = np.linalg.qr(scaled, mode="r") if len(scaled) > scaled.shape[1] else scaled
        self.rows = np.ascontiguousarray(kept, dtype=np.float32)
        examples_kept, self.components = self.rows.shape
        self.projection = np.eye(examples_kept)
        self.ahead = np.empty((BLOCK, self.components + examples_kept), dtype=np.float32)
        self.past = np.empty_like(self.ahead)
        self.picked = 0  # of this block
        self.places: dict[int, int] = {}
        self.current = np.empty(0, dtype=np.float32)

    def diagonal(self) -> Vector:
        """Return the diagonal of ``H``."""
        found: Vector = np.einsum("mn,mn->n", self.rows, self.rows, dtype=np.float64)
        return found

    def column(self, j: int, likely: Callable[[int], Indices]) -> Vector:
        """Return ``A^T P a_j / N``."""
        if j not in self.places or self.picked == BLOCK:
            self._open(j, likely(BLOCK - 1))
        past = self.past[: self.picked]
        self.current = self.ahead[self.places[j]] - past[:, j] @ past
        return self.current[: self.components].astype(np.float64)

    def pick(self, variance: float) -> None:
        """Remember the pick until the block ends."""
        self.past[self.picked] = self.current / np.sqrt(variance)
        self.picked += 1

    def _open(self, j: int, likely: Indices) -> None:
        """Take the block's picks out of ``P`` and make the columns of the next block."""
        tails = self.past[: self.picked, self.components :]
        self.projection -= tails.T @ tails
        self.picked = 0
        chosen = np.append(likely[likely != j], j)
        seen = (self.projection @ self.rows[:, chosen]).astype(np.float32)
        self.ahead[: len(chosen), : self.components] = seen.T @ self.rows
        self.ahead[: len(chosen), self.components :] = seen.T
        self.places = {int(component): place for place, component in enumerate(chosen)}


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


@dataclass(frozen=True)
class TimeRoom:
    """A limit on seconds beside the budget.

    Args:
        limit: The largest total.
        first: The seconds that an owner's first component takes.
        more: The seconds that each further one takes.
    """

    limit: float
    first: Vector
    more: Vector


def check_damping(damping: float) -> None:
    """Refuse a damping that is not positive."""
    if not damping > 0:
        raise ValueError(f"damping={damping!r} must be positive: two components that do the same would divide by zero")


def check_breadth(breadth: float) -> None:
    """Refuse a breadth outside [0, 1]."""
    if not 0.0 <= breadth <= 1.0:
        raise ValueError(f"breadth={breadth!r} must lie in [0, 1]: 0 goes by gain alone, 1 is the uniform plan")


def damping_of(diagonal: Vector, damping: float) -> float:
    """Return ``lambda = damping mean(diag H)``.

    Raises:
        ValueError: ``damping`` is not positive, or all curvatures are zero or not finite.
    """
    check_damping(damping)
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
    most: Sequence[int] | None = None,
    room: TimeRoom | None = None,
) -> Picks:
    """Pick components greedily by marginal gain per cost until nothing fits into the budget.

    The marginal gain of ``j`` given ``S`` is ``resid_j^2 / (2 var_j)`` with ``resid = lin - H_.S (H_SS + lambda I)^-1
    lin_S`` and ``var`` the diagonal of the Schur complement; both follow each pick, as in a pivoted Cholesky
    factorisation. Equal values are taken by index.

    ``breadth`` spreads a choice over owners: the d-th component of an owner has the priority ``v / d^(breadth / (1 -
    breadth))`` with ``v`` its marginal gain per cost, so ``v / d`` at a half. At 1 every owner gets its d-th component
    before any gets one more, exactly; within one round the better ones come first.

    With ``room``, a component costs the share of the budget plus the share of the seconds that it takes, and has to fit
    into both.

    Args:
        lin: The slope of each component (n,).
        curvature: The curvature, conditioned on nothing yet; it is used up.
        costs: The cost of each component, positive.
        budget: The largest total cost.
        owners: The owner of each component as a number from 0; each its own where left out.
        damping: ``lambda`` is this times the mean diagonal of ``H``.
        breadth: From 0 (by gain alone) to 1 (uniform over owners).
        most: How many components each owner may have at most.
        room: The time limit, if there is one.

    Raises:
        ValueError: A number is out of range, or there is no curvature.
    """
    check_breadth(breadth)
    price = np.asarray(costs, dtype=np.int64)
    if len(price) and price.min() <= 0:
        raise ValueError(f"costs must be positive, got {price.min()}")
    owner = np.arange(len(price)) if owners is None else np.asarray(owners, dtype=np.int64)
    resid = np.asarray(lin, dtype=np.float64).copy()
    variance = curvature.diagonal()
    variance += damping_of(variance, damping)
    offer = _Offer(price, budget, owner, most, room)
    value = resid * resid / (2 * variance * offer.weight)
    in_rounds = breadth > IN_ROUNDS
    discount = np.arange(1.0, len(price) + 2) ** (0.0 if in_rounds else -breadth / (1 - breadth))
    order: list[int] = []
    gains: list[float] = []
    while (wanted := offer.fits()).any():
        if in_rounds:
            wanted &= offer.taken[owner] == offer.taken[owner[wanted]].min()
        ranked = np.where(wanted, value * discount[offer.taken[owner]], -1.0)
        j = int(np.argmax(ranked))
        order.append(j)
        gains.append(float(value[j] * offer.weight[j]))
        offer.take(j)
        column = curvature.column(j, partial(_highest, ranked))
        curvature.pick(float(variance[j]))
        resid -= column * (resid[j] / variance[j])
        variance -= column * (column / variance[j])
        value = resid * resid / (2 * variance * offer.weight)
    return Picks(tuple(order), tuple(gains), tuple(int(price[j]) for j in order), offer.left)


class _Offer:
    """What may still be picked, and what a pick of it weighs.

    Args:
        price: The cost of each component.
        budget: The largest total cost.
        owner: The owner of each.
        most: How many each owner may have.
        room: The time limit.
    """

    def __init__(
        self, price: Indices, budget: int, owner: Indices, most: Sequence[int] | None, room: TimeRoom | None
    ) -> None:
        self.price, self.budget, self.left = price, budget, budget
        self.owner, self.room = owner, room
        self.most = np.full(int(owner.max()) + 1, len(price)) if most is None else np.asarray(most, dtype=np.int64)
        self.taken = np.zeros(len(self.most), dtype=np.int64)
        self.waits = self.most[owner] > 0
        self.seconds = np.zeros(len(price)) if room is None else np.asarray(room.first, dtype=np.float64)[owner]
        self.time_left = 0.0 if room is None else room.limit
        self.weight = self._weigh()

    def fits(self) -> NDArray[np.bool_]:
        """Return which components fit into what is left."""
        fits: NDArray[np.bool_] = self.waits & (self.price <= self.left) & (self.seconds <= self.time_left)
        return fits

    def take(self, j: int) -> None:
        """Pay for a component; from then on its owner's others take less time, or are no longer on offer."""
        owner = self.owner[j]
        self.waits[j] = False
        self.left -= int(self.price[j])
        self.time_left -= float(self.seconds[j])
        self.taken[owner] += 1
        if self.taken[owner] == self.most[owner]:
            self.waits[self.owner == owner] = False
        if self.room is not None and self.taken[owner] == 1:
            self.seconds[self.owner == owner] = self.room.more[owner]
            self.weight = self._weigh()

    def _weigh(self) -> Vector:
        if self.room is None:
            return self.price.astype(np.float64)
        return self.price / self.budget + self.seconds / self.room.limit


def _highest(value: Vector, count: int) -> Indices:
    """Return the indices of the highest values, in no order."""
    return np.argpartition(-value, count)[:count] if count < len(value) else np.arange(len(value))
