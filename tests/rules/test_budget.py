from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from rankwise.rules.budget import allocate, resolve_budget, why_unspent
from rankwise.rules.kinds import is_shortcut

COSTS = ([4], [2, 3], [8, 12, 6], [5, 7, 9, 11], [1, 3, 4, 9, 10])


def total(names: set[str], of: Mapping[str, float]) -> float:
    return sum(of[name] for name in names)


def worth(names: set[str], scores: Mapping[str, float]) -> float:
    """What a choice is worth: filling up with scores below zero, or without a score, takes nothing away."""
    return sum(max(scores[name], 0.0) for name in names if math.isfinite(scores[name]))


def brute_force(scores: Mapping[str, float], costs: Mapping[str, int], budget: int) -> float:
    """The highest worth over all 2^n subsets within the budget."""
    names = list(scores)
    subsets = (np.arange(2 ** len(names))[:, None] >> np.arange(len(names))) & 1
    values = np.array([scores[name] if math.isfinite(scores[name]) else 0.0 for name in names])
    spent = subsets @ np.array([costs[name] for name in names])
    return float((subsets @ values)[spent <= budget].max())


def case(seed: int) -> tuple[dict[str, float], dict[str, int], int]:
    """A small random search: 1 to 5 distinct costs; ties, zeros, negatives and scores that are not finite."""
    draw = np.random.default_rng(seed)
    costs_allowed = COSTS[seed % len(COSTS)]
    count = int(draw.integers(2, 11))
    kind = seed % 4
    scores = draw.integers(0, 4, count).astype(float) if kind == 0 else draw.random(count)
    if kind == 2:
        scores *= 1e-30 if seed % 8 == 2 else 1e30
    if kind == 3:
        scores -= 0.3
        for hole in (math.nan, math.inf, -math.inf):
            scores[draw.integers(count)] = hole
    scores[0], scores[1] = 0.0, 0.5 * (1e-30 if kind == 2 else 1.0)  # never all tied
    costs = {f"layers.{i}.q": int(draw.choice(costs_allowed)) for i in range(count)}
    budget = int(draw.integers(0, sum(costs.values()) + 3))
    return dict(zip(costs, map(float, scores), strict=True)), costs, budget


@pytest.mark.parametrize("first", range(0, 400, 50))
def test_the_choice_is_worth_as_much_as_the_best_of_all_subsets(first: int) -> None:
    for seed in range(first, first + 50):
        scores, costs, budget = case(seed)
        chosen = allocate(scores, costs, budget, generator=np.random.default_rng(seed))
        assert total(chosen, costs) <= budget, seed
        assert worth(chosen, scores) == pytest.approx(brute_force(scores, costs, budget), rel=1e-12, abs=0.0), seed


@pytest.mark.parametrize("allocation", ["combined", "separated"])
@pytest.mark.parametrize("seed", range(40))
def test_what_still_fits_is_taken_and_paths_without_a_score_come_last(seed: int, allocation: str) -> None:
    scores, costs, budget = case(seed)
    scores = {name.replace("q", "cut") if i % 3 == 0 else name: v for i, (name, v) in enumerate(scores.items())}
    costs = dict(zip(scores, costs.values(), strict=True))
    chosen = allocate(scores, costs, budget, allocation=allocation)
    assert total(chosen, costs) <= budget
    for shortcuts in (False, True) if allocation == "separated" else (None,):
        group = {n for n in scores if shortcuts is None or is_shortcut(n) == shortcuts}
        linear = budget * sum(costs[n] for n in costs if not is_shortcut(n)) // sum(costs.values())
        limit = {None: budget, False: linear, True: budget - linear}[shortcuts]
        left = limit - total(chosen & group, costs)
        assert left >= 0
        assert not [n for n in group - chosen if costs[n] <= left]
        finite = {n for n in group if math.isfinite(scores[n])}
        room = limit - total(chosen & finite, costs)
        assert not [n for n in finite - chosen if costs[n] <= room], "a path without a score took its place"


@pytest.mark.parametrize(
    ("scores", "costs", "budget", "best"),
    [
        ({"a": 10, "b": 9, "c": 9}, {"a": 6, "b": 5, "c": 5}, 10, {"b", "c"}),  # against the highest score first
        ({"a": 2, "b": 10}, {"a": 1, "b": 10}, 10, {"b"}),  # against the highest score per parameter first
        ({"a": 3, "b": 2, "c": 1}, {"a": 4, "b": 4, "c": 4}, 9, {"a", "b"}),  # equal costs: the top k
        ({"a": 5, "b": 4, "c": math.nan}, {"a": 7, "b": 3, "c": 1}, 8, {"a", "c"}),  # then whatever fits
        ({"a": -1, "b": -2, "c": -3}, {"a": 2, "b": 2, "c": 2}, 4, {"a", "b"}),  # nothing is left unspent
        ({"a": math.inf, "b": 0.1}, {"a": 2, "b": 2}, 2, {"b"}),  # infinity is an overflow, not a high score
        ({"a": 1, "b": 2}, {"a": 3, "b": 3}, 2, set()),  # nothing fits
        ({}, {}, 5, set()),
    ],
)  # fmt: skip
def test_constructed_cases(scores: dict[str, float], costs: dict[str, int], budget: int, best: set[str]) -> None:
    assert allocate(scores, costs, budget) == best


@pytest.mark.parametrize("scores", [[0.1, 0.7, 0.3], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [math.nan, 2.0, -math.inf]])
def test_budgets_of_nothing_and_of_everything_mean_what_they_say(scores: list[float]) -> None:
    costs = {"a": 3, "b": 5, "c": 7}
    named = dict(zip(costs, scores, strict=True))
    assert allocate(named, costs, 0) == set()
    assert allocate(named, costs, resolve_budget(1.0, costs)) == set(costs)
    assert allocate(named, costs, 10**9) == set(costs)


@pytest.mark.parametrize("seed", range(6))
def test_it_equals_an_integer_program_solved_without_a_gap(seed: int) -> None:
    from scipy.optimize import Bounds, LinearConstraint, milp

    draw = np.random.default_rng(seed)
    count = 90
    values, sizes = draw.random(count), draw.choice([2048, 3072, 5120, 5632], count)
    names = [f"p{i}" for i in range(count)]
    budget = int(sizes.sum() * draw.uniform(0.1, 0.6))
    solved = milp(
        -values,
        constraints=LinearConstraint(sizes[None, :], ub=budget),
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    scores = dict(zip(names, map(float, values), strict=True))
    chosen = allocate(scores, dict(zip(names, map(int, sizes), strict=True)), budget)
    assert total(chosen, scores) == pytest.approx(-solved.fun, rel=1e-9)


def test_a_thousand_paths_of_six_odd_costs() -> None:
    draw = np.random.default_rng(0)
    sizes = draw.choice([1021, 2039, 3067, 4093, 6151, 8209], 1000)
    costs = {f"p{i}": int(size) for i, size in enumerate(sizes)}
    scores = {name: float(value) for name, value in zip(costs, draw.random(1000), strict=True)}
    budget = resolve_budget(0.25, costs)
    chosen = allocate(scores, costs, budget)
    by_density = sorted(costs, key=lambda name: scores[name] / costs[name], reverse=True)
    spent = np.cumsum([costs[name] for name in by_density])
    fits = int((spent <= budget).sum())
    greedy = sum(scores[name] for name in by_density[:fits])
    relaxed = greedy + scores[by_density[fits]]  # no integer solution is worth more than the relaxed one
    assert budget - 1021 < total(chosen, costs) <= budget
    assert greedy <= total(chosen, scores) <= relaxed


def chi_square(counts: Mapping[frozenset[str], int], cells: int) -> float:
    expected = sum(counts.values()) / cells
    return sum((n - expected) ** 2 / expected for n in counts.values()) + (cells - len(counts)) * expected


@pytest.mark.parametrize(
    "scores",
    [
        {"top": 9.0, "a": 2.0, "b": 2.0, "c": 2.0, "d": 2.0, "low": 1.0},
        {"top": 9.0, "a": math.nan, "b": -math.inf, "c": math.inf, "d": math.nan},
        {"top": 9.0, "a": 0.0, "b": 0.0, "c": 0.0, "d": 0.0},
    ],
    ids=["finite", "not finite", "zero"],
)
def test_ties_at_the_border_are_drawn_uniformly(scores: dict[str, float]) -> None:
    costs = dict.fromkeys(scores, 2)
    draws = [allocate(scores, costs, 6, generator=np.random.default_rng(seed)) for seed in range(600)]
    assert all("top" in chosen and "low" not in chosen and len(chosen) == 3 for chosen in draws)
    counts = Counter(frozenset(chosen - {"top"}) for chosen in draws)
    assert chi_square(counts, 6) < 20.5  # 99.9 % of fair draws, 5 degrees of freedom


@pytest.mark.parametrize("score", [1.0, 0.0, -3.0, math.nan])
def test_when_all_scores_tie_a_cheap_path_is_not_favoured(score: float) -> None:
    costs = {"cheap": 1, "dear": 3}
    draws = [
        allocate(dict.fromkeys(costs, score), costs, 3, generator=np.random.default_rng(seed)) for seed in range(400)
    ]
    assert all(len(chosen) == 1 for chosen in draws)
    assert abs(sum("dear" in chosen for chosen in draws) - 200) < 40  # 4 standard deviations


def test_separated_gives_each_kind_its_share() -> None:
    costs = {f"layers.{i}.{kind}": cost for i in range(4) for kind, cost in {"q": 10, "res1": 20}.items()}
    scores = {name: float(i) + 100 * name.endswith("q") for i, name in enumerate(costs)}
    assert {n.rpartition(".")[2] for n in allocate(scores, costs, 40)} == {"q"}
    separated = allocate(scores, costs, 60, allocation="separated")
    assert separated == {"layers.2.q", "layers.3.q", "layers.2.res1", "layers.3.res1"}


def test_separated_spends_the_papers_36_paths() -> None:
    names = list(opt_350m())
    chosen = allocate(dict.fromkeys(names, 1.0), dict.fromkeys(names, 1), 36, allocation="separated")
    assert sum(is_shortcut(name) for name in chosen) == 24
    assert len(chosen) == 36


def opt_350m() -> dict[str, int]:
    """LoRA on q and v and all shortcuts of OPT-350M's 24 blocks; the first has no cut-layer shortcut."""
    kinds = ["q_proj", "v_proj", "res1", "res2", "in", "cut"]
    return {f"layers.{i}.{kind}": 16384 for i in range(24) for kind in kinds if (i, kind) != (0, "cut")}


@pytest.mark.parametrize(
    ("budget", "unit", "limit"),
    [
        (0.25, "paths", 12 + 24),
        (0.0, "paths", 0),
        (1.0, "paths", 143),
        (7, "paths", 7),
        (0.25, "parameters", 585_728),
        (0.0, "parameters", 0),
        (1.0, "parameters", 143 * 16384),
        (600_000, "parameters", 600_000),
        (10**12, "parameters", 10**12),
    ],
)
def test_a_budget_as_a_whole_number(budget: float, unit: str, limit: int) -> None:
    costs = opt_350m()
    assert len(costs) == 143
    assert resolve_budget(budget, costs, unit) == limit


def test_halves_of_paths_round_as_python_rounds_and_fractions_of_parameters_round_down() -> None:
    assert resolve_budget(0.5, {"q": 1, "v": 1, "k": 1, "layers.0.res1": 1}, "paths") == 1 + 0
    assert resolve_budget(0.5, {"layers.0.res1": 1, "layers.1.res1": 1, "layers.2.res1": 1}, "paths") == 2
    assert resolve_budget(0.5, {"q": 3, "v": 4}) == 3


def test_the_same_seed_draws_the_same_and_no_global_generator_moves() -> None:
    costs = {f"p{i}": 2 + i % 3 for i in range(30)}
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    for scores in (dict.fromkeys(costs, 1.0), {name: float(i % 4) for i, name in enumerate(costs)}):
        first, again = (allocate(scores, costs, 40, generator=np.random.default_rng(3)) for _ in range(2))
        others = [allocate(scores, costs, 40, generator=np.random.default_rng(seed)) for seed in range(4, 9)]
        assert first == again
        assert any(first != other for other in others)
        assert allocate(scores, costs, 40) == allocate(scores, costs, 40)
    assert random.getstate() == before[0]
    assert str(np.random.get_state()) == str(before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize(
    ("scores", "costs", "words"),
    [
        ({"a": 1.0}, {"a": 1, "b": 2}, "different paths: b"),
        ({"a": 1.0, "c": 1.0}, {"a": 1}, "different paths: c"),
        ({"a": 1.0}, {"a": 0}, "positive, got 0"),
        ({"a": 1.0}, {"a": -4}, "positive, got -4"),
    ],
)
def test_a_mistake_is_named(scores: dict[str, float], costs: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        allocate(scores, costs, 1)


@pytest.mark.parametrize(("budget", "paths", "expected"), [(0.29, 100, 29), (0.57, 100, 57), (0.1, 30, 3)])
def test_a_fraction_is_the_decimal_that_was_written(budget: float, paths: int, expected: int) -> None:
    costs = {f"layers.{i}.q": 1000 for i in range(paths)}
    assert resolve_budget(budget, costs) == 1000 * expected
    assert resolve_budget(budget, costs, "paths") == expected


def test_what_is_left_of_a_budget_is_said_with_its_reason() -> None:
    """The published setting: v costs 768 and q 1,024, and filling by whole paths leaves a third."""
    costs = {"q0": 1024, "v0": 768, "q1": 1024, "v1": 768}
    said = why_unspent({"v0", "v1"}, costs, 2240)
    assert said.startswith("704 of 2240 are left: a path is taken whole, and the cheapest that is off costs 1024")
    assert "rank_plan" in said
    assert why_unspent({"v0", "v1"}, costs, 1536) == ""
    assert why_unspent(costs, costs, 4000) == "416 of 4000 are left: every path is on"
