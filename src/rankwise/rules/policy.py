"""Which proxy a search asks, and what it chooses. Pure functions on names and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rankwise.rules.budget import allocate, resolve_budget
from rankwise.seeds import stable_seed


@dataclass(frozen=True)
class Policy:
    """The rules of a search that do not change while it runs.

    Args:
        proxy: The proxy asked after the warm-up.
        warmup_searches: How many first searches draw at random.
        budget: A fraction or a count.
        budget_unit: ``"parameters"`` or ``"paths"``.
        allocation: ``"combined"`` or ``"separated"``.
        seed: Seeds the draws.
    """

    proxy: str
    warmup_searches: int
    budget: float | int
    budget_unit: str
    allocation: str
    seed: int

    def limit(self, costs: Mapping[str, int]) -> int:
        """Return the budget as a number of parameters or paths."""
        return resolve_budget(self.budget, costs, self.budget_unit)

    def prices(self, costs: Mapping[str, int]) -> Mapping[str, int]:
        """Return what each path costs in the budget's unit."""
        return costs if self.budget_unit == "parameters" else dict.fromkeys(costs, 1)

    def first(self, costs: Mapping[str, int]) -> set[str]:
        """Return a random choice within the budget: what is on before anything was scored."""
        return self._allocate(dict.fromkeys(costs, 1.0), costs, self.limit(costs), ("first",))

    def proxy_of(self, search: int) -> str:
        """Return the proxy of the given search, counted from 0."""
        return "constant" if search < self.warmup_searches else self.proxy

    def choose(
        self, scores: Mapping[str, float], costs: Mapping[str, int], search: int, *, limit: int | None = None
    ) -> set[str] | None:
        """Return the paths to enable, or None where no score is finite and the allocation should stay.

        Draws among ties come from a generator seeded by (seed, search), so a resumed run draws what the
        uninterrupted one would have drawn.

        Args:
            scores: One score per path.
            costs: The parameters of each path.
            search: Number of the search.
            limit: The budget as a number, where the candidates are no longer those that it is a fraction of.
        """
        if scores and not any(math.isfinite(score) for score in scores.values()):
            return None
        return self._allocate(scores, costs, self.limit(costs) if limit is None else limit, ("search", search))

    def _allocate(
        self, scores: Mapping[str, float], costs: Mapping[str, int], limit: int, draw: tuple[object, ...]
    ) -> set[str]:
        generator = np.random.default_rng(stable_seed(self.seed, *draw))
        return allocate(scores, self.prices(costs), limit, allocation=self.allocation, generator=generator)
