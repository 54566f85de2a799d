"""Ranks per path under a budget for the arms that choose without a plan: pure functions on names and numbers.

A *layout* is the rank of each path that has one. A rank-1 component of a path costs what the path costs at rank 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Layout = dict[str, int]


def spent(layout: Mapping[str, int], costs: Mapping[str, int]) -> int:
    """Return the number of parameters of a layout.

    Args:
        layout: Rank of each path.
        costs: Cost of a rank-1 component of each path.
    """
    return sum(rank * costs[name] for name, rank in layout.items())


def spread(
    costs: Mapping[str, int], budget: int, generator: np.random.Generator, *, largest: Mapping[str, int] | None = None
) -> Layout:
    """Return ranks that are as equal as the budget allows: rank 1 for all, then rank 2, the last pass for some.

    Each pass visits the paths in a random order and adds a component wherever one fits. Below one rank for every path
    this is rank 1 on random paths; above, uniform ranks and a random remainder.

    Args:
        costs: Cost of a rank-1 component of each path.
        budget: Parameters that may be spent.
        generator: Draws the orders.
        largest: The largest rank of each path; no limit if left out.

    Raises:
        ValueError: No component fits.
    """
    names = list(costs)
    ranks = dict.fromkeys(names, 0)
    left, added = budget, True
    while added:
        added = False
        for name in (names[i] for i in generator.permutation(len(names))):
            if costs[name] <= left and (largest is None or ranks[name] < largest[name]):
                ranks[name] += 1
                left -= costs[name]
                added = True
    return _chosen(ranks, costs, budget)


def even(costs: Mapping[str, int], budget: int, generator: np.random.Generator, *, largest: int) -> Layout:
    """Return one rank for every path, the largest that fits; below rank 1 everywhere, rank 1 on random paths.

    Args:
        costs: Cost of a rank-1 component of each path.
        budget: Parameters that may be spent.
        generator: Draws the paths where not all can have one.
        largest: The largest rank.

    Raises:
        ValueError: No component fits.
    """
    rank = min(budget // sum(costs.values()), largest)
    return dict.fromkeys(costs, rank) if rank else spread(costs, budget, generator)


def greedy(values: Mapping[str, Sequence[float]], costs: Mapping[str, int], budget: int) -> Layout:
    """Return the ranks that taking components by falling value per cost leads to, until nothing fits.

    Args:
        values: The value of each component of each path, falling within a path.
        costs: Cost of a rank-1 component of each path.
        budget: Parameters that may be spent.

    Raises:
        ValueError: No component fits.
    """
    ranked = sorted(
        ((-value / costs[name], number, name) for name, own in values.items() for number, value in enumerate(own))
    )
    ranks, left = dict.fromkeys(values, 0), budget
    for _, _, name in ranked:
        if costs[name] <= left:
            ranks[name] += 1
            left -= costs[name]
    return _chosen(ranks, costs, budget)


def alone(costs: Mapping[str, int], name: str, size: int) -> Layout:
    """Return the layout of one path alone, with the rank that comes nearest to a number of parameters.

    Args:
        costs: Cost of a rank-1 component of each path.
        name: The path.
        size: The number of parameters.
    """
    return {name: max(1, round(size / costs[name]))}


def overlap(one: Mapping[str, int], other: Mapping[str, int]) -> float:
    """Return the share of components that two layouts have in common, of those in either: 1 where they are equal."""
    names = set(one) | set(other)
    both = sum(min(one.get(name, 0), other.get(name, 0)) for name in names)
    either = sum(max(one.get(name, 0), other.get(name, 0)) for name in names)
    return both / either if either else 1.0


def _chosen(ranks: Mapping[str, int], costs: Mapping[str, int], budget: int) -> Layout:
    chosen = {name: rank for name, rank in ranks.items() if rank}
    if not chosen:
        raise ValueError(f"budget={budget} is below the cheapest component, {min(costs.values())} parameters: raise it")
    return chosen
