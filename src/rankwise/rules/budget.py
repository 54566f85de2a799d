"""Choosing paths under a budget, exactly. Pure functions on names and numbers.

Letters: ``v`` a score (value), ``c`` a cost, ``C`` the budget. Within one cost the best set of ``k`` paths is the
``k`` highest scores, so the search runs over how many paths of each distinct cost are taken.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction

import numpy as np

from rankwise.errors import check_choice
from rankwise.rules.kinds import is_shortcut


def resolve_budget(budget: float | int, costs: Mapping[str, int], unit: str = "parameters") -> int:
    """Return the budget as a whole number: parameters, or paths for ``unit="paths"``.

    A float is a fraction of the candidates. In parameters it is rounded down. In paths it reproduces the paper
    (arXiv 2406.14956): ``floor(p n_linear) + round(p n_shortcut)``; here a shortcut is what is named like a block path
    (``layers.3.res1``).

    Args:
        budget: A fraction in [0, 1] or a count.
        costs: The cost of each candidate, by name.
        unit: ``"parameters"`` or ``"paths"``.
    """
    if isinstance(budget, int):
        return budget
    if unit == "parameters":
        return fraction_of(budget, sum(costs.values()))
    share = Fraction(str(budget))
    shortcuts = sum(is_shortcut(name) for name in costs)
    return math.floor(share * (len(costs) - shortcuts)) + round(share * shortcuts)


def fraction_of(share: float, whole: int) -> int:
    """Return a fraction of a whole, rounded down; 0.29 of 100 is 29, which the nearest binary fraction just misses."""
    return math.floor(Fraction(str(share)) * whole)


def allocate(
    scores: Mapping[str, float],
    costs: Mapping[str, int],
    budget: int,
    *,
    allocation: str = "combined",
    generator: np.random.Generator | None = None,
) -> set[str]:
    """Return the set of paths with the highest total score whose total cost is at most ``budget``.

    Maximises ``sum v`` subject to ``sum c <= C`` exactly, then fills with whatever still fits, by score. Paths that tie
    at the border are drawn uniformly. When all scores are equal the paths are shuffled and filled in that order, so
    that cheap paths are not favoured. A score that is not finite counts as minus infinity: it is taken last.

    Args:
        scores: The score of each path; higher is more worth having.
        costs: The cost of each path, a positive whole number, with the same keys.
        budget: The largest allowed total cost.
        allocation: ``"combined"``, or ``"separated"``: linear paths get the budget times their share of the total
            cost, rounded down, and shortcuts the rest.
        generator: Draws among ties; seeded with 0 if left out.

    Raises:
        ValueError: The keys differ, or a cost is not positive.
    """
    check_choice("allocation", allocation, ("combined", "separated"))
    if set(scores) != set(costs):
        differing = sorted(set(scores) ^ set(costs))
        raise ValueError(f"scores and costs name different paths: {', '.join(differing[:5])}")
    if any(cost <= 0 for cost in costs.values()):
        raise ValueError(f"costs must be positive, got {min(costs.values())}")
    draw = generator if generator is not None else np.random.default_rng(0)
    if allocation == "combined":
        return _allocate(list(scores), scores, costs, budget, draw)
    linear = [name for name in scores if not is_shortcut(name)]
    shortcuts = [name for name in scores if is_shortcut(name)]
    share = budget * sum(costs[name] for name in linear) // max(sum(costs.values()), 1)
    chosen = _allocate(linear, scores, costs, share, draw)
    return chosen | _allocate(shortcuts, scores, costs, budget - share, draw)


def _allocate(
    names: Sequence[str],
    scores: Mapping[str, float],
    costs: Mapping[str, int],
    budget: int,
    generator: np.random.Generator,
) -> set[str]:
    """Shuffle, sort by score (ties stay shuffled), take the optimum, fill."""
    order = [names[i] for i in generator.permutation(len(names))]
    finite = [name for name in order if math.isfinite(scores[name])]
    chosen: set[str] = set()
    if len({scores[name] for name in finite}) > 1:
        order.sort(key=lambda name: -scores[name] if math.isfinite(scores[name]) else math.inf)
        chosen = _best(sorted(finite, key=lambda name: -scores[name]), scores, costs, budget)
    else:
        order.sort(key=lambda name: not math.isfinite(scores[name]))
    left = budget - sum(costs[name] for name in chosen)
    for name in order:
        if name not in chosen and costs[name] <= left:
            chosen.add(name)
            left -= costs[name]
    return chosen


def _best(names: Sequence[str], scores: Mapping[str, float], costs: Mapping[str, int], budget: int) -> set[str]:
    """Solve the 0/1 knapsack over ``names`` (sorted by falling score) by the number taken of each distinct cost.

    A state is (cost so far, value so far, numbers taken); a state that costs no less and is worth no more than another
    is dropped, so with few distinct costs few states remain.
    """
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(costs[name], []).append(name)
    scale = max(abs(scores[name]) for name in names) or 1.0
    spent, value = np.zeros(1, dtype=np.int64), np.zeros(1)
    taken = np.zeros((1, 0), dtype=np.int64)
    for left, (cost, members) in zip(reversed(range(len(groups))), groups.items(), strict=True):
        prefix = np.concatenate([[0.0], np.cumsum([scores[name] / scale for name in members])])
        count = np.arange(len(prefix))
        all_spent = (spent[:, None] + cost * count).ravel()
        all_value = (value[:, None] + prefix).ravel()
        # Nothing follows the last cost, so that of its states, by far the most, one is enough.
        keep = _undominated(all_spent, all_value, budget) if left else _worthiest(all_spent, all_value, budget)
        taken = np.column_stack([taken[keep // len(count)], count[keep % len(count)]])
        spent, value = all_spent[keep], all_value[keep]
    return {name for members, k in zip(groups.values(), taken[0], strict=True) for name in members[:k]}


def _undominated(spent: np.ndarray, value: np.ndarray, budget: int) -> np.ndarray:
    """Return the indices of states within the budget that are worth more than every cheaper state."""
    order = np.lexsort((-value, spent))
    order = order[spent[order] <= budget]
    best_before = np.concatenate([[-np.inf], np.maximum.accumulate(value[order])[:-1]])
    return order[value[order] > best_before]


def _worthiest(spent: np.ndarray, value: np.ndarray, budget: int) -> np.ndarray:
    """Return the index of the state within the budget that is worth most, of several the cheapest."""
    allowed = np.flatnonzero(spent <= budget)
    tied = allowed[value[allowed] == value[allowed].max()]
    return tied[[int(np.argmin(spent[tied]))]]


def why_unspent(chosen: Collection[str], costs: Mapping[str, int], budget: int) -> str:
    """Say what a choice leaves of the budget and why; empty where it leaves nothing.

    Args:
        chosen: The paths taken.
        costs: What each path costs.
        budget: The limit.
    """
    left = budget - sum(costs[name] for name in chosen)
    off = [costs[name] for name in costs if name not in chosen]
    if left <= 0:
        return ""
    if not off:
        return f"{left} of {budget} are left: every path is on"
    return (
        f"{left} of {budget} are left: a path is taken whole, and the cheapest that is off costs {min(off)}. A lower "
        "rank leaves less, and rankwise.rank_plan, which gives ranks one by one, next to nothing"
    )
