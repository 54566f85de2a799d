"""What is on before anything was searched."""

from __future__ import annotations

import warnings

from rankwise.paths.path_set import PathSet


def first_allocation(paths: PathSet) -> set[str]:
    """Return the allocation before any search: a draw within the budget, or everything where nothing is searched."""
    policy, costs = paths.config.policy(), paths.costs()
    if paths.config.undecided:
        return set()
    if policy is None:
        return set(costs)
    first: set[str] = policy.first(costs)
    limit = policy.limit(costs)
    if limit > 0 and not first:
        warnings.warn(
            f"budget={policy.budget!r} is {limit} {policy.budget_unit}, but the cheapest path costs "
            f"{min(policy.prices(costs).values())}: no path will ever train; raise the budget or lower r",
            stacklevel=2,
        )
    return first
