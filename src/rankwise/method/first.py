"""What is on before anything was searched."""

from __future__ import annotations

import warnings

import numpy as np

from rankwise.paths.path_set import PathSet
from rankwise.rules.budget import allocate, resolve_budget
from rankwise.seeds import stable_seed


def first_allocation(paths: PathSet) -> set[str]:
    """Return the allocation before any search: everything with ``mode="off"``, else a draw within the budget."""
    config, costs = paths.config, paths.costs()
    if config.mode == "off":
        return set(costs)
    unit = config.budget_unit
    budget = resolve_budget(config.budget, costs, unit)
    per_path = costs if unit == "parameters" else dict.fromkeys(costs, 1)
    generator = np.random.default_rng(stable_seed(config.seed, "first"))
    first = allocate(dict.fromkeys(costs, 1.0), per_path, budget, allocation=config.allocation, generator=generator)
    if budget > 0 and not first:
        warnings.warn(
            f"budget={config.budget!r} is {budget} {unit}, but the cheapest path costs {min(per_path.values())}: no "
            "path will ever train; raise the budget or lower r",
            stacklevel=2,
        )
    return first
