from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from rankwise.rules.policy import Policy

COSTS = {f"layers.{i}.{kind}": 64 for i in range(20) for kind in ("q", "v")}
TIED = dict.fromkeys(COSTS, 1.0)


def policy(**fields: Any) -> Policy:
    options = {"budget_unit": "parameters", "allocation": "combined", "warmup_searches": 0, "seed": 0, **fields}
    return Policy(**{"proxy": "grad_norm", "budget": 0.25, **options})


def choice(rules: Policy, search: int, scores: dict[str, float] = TIED, costs: dict[str, int] = COSTS) -> set[str]:
    chosen = rules.choose(scores, costs, search)
    assert chosen is not None
    return chosen


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [(0, ["snip", "snip", "snip"]), (2, ["constant", "constant", "snip"]), (9, ["constant"] * 3)],
)
def test_the_first_searches_draw_at_random(warmup: int, expected: list[str]) -> None:
    rules = policy(proxy="snip", warmup_searches=warmup)
    assert [rules.proxy_of(search) for search in range(3)] == expected


@pytest.mark.parametrize("budget", [0.1, 0.25, 0.5, 0.9])
def test_consecutive_random_choices_overlap_by_the_budget(budget: float) -> None:
    rules = policy(proxy="constant", budget=budget)
    chosen = [choice(rules, search) for search in range(300)]
    size = round(budget * len(COSTS))
    assert {len(names) for names in chosen} == {size}
    overlap = np.mean([len(a & b) / size for a, b in pairwise(chosen)])
    assert overlap == pytest.approx(budget, abs=0.03)


def test_a_search_draws_by_seed_and_number_alone() -> None:
    forward = [choice(policy(), search) for search in range(8)]
    backward = [choice(policy(), search) for search in reversed(range(8))]
    assert forward == backward[::-1], "a resumed run draws what the uninterrupted one would have drawn"
    assert len({frozenset(names) for names in forward}) == 8
    assert choice(policy(seed=1), 0) != forward[0]


def test_the_same_scores_give_the_same_choice_at_every_search() -> None:
    scores = {name: float(i) for i, name in enumerate(COSTS)}
    best = set(list(COSTS)[-10:])
    assert all(choice(policy(seed=seed), search, scores) == best for seed in range(3) for search in range(5))


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
def test_nothing_finite_means_no_choice(value: float) -> None:
    scores = dict.fromkeys(COSTS, value)
    assert policy().choose(scores, COSTS, 0) is None
    assert choice(policy(budget=64), 0, {**scores, "layers.7.v": -5.0}) == {"layers.7.v"}


@pytest.mark.parametrize(
    ("budget", "unit", "expected"),
    [
        (0.5, "parameters", {"a.q", "b.q"}),  # 21 of 42
        (33, "parameters", {"a.q", "c.q", "layers.3.res1"}),
        (
            0.5,
            "paths",
            {"c.q"},
        ),  # floor(3 / 2) linear paths and round(1 / 2) = 0 shortcuts; what they cost is no matter
        (3, "paths", {"a.q", "b.q", "c.q"}),
    ],
)
def test_the_unit_of_the_budget(budget: float, unit: str, expected: set[str]) -> None:
    scores, costs = (
        {"a.q": 4.0, "b.q": 3.0, "c.q": 5.0, "layers.3.res1": 0.1},
        {"a.q": 12, "b.q": 9, "c.q": 20, "layers.3.res1": 1},
    )
    assert choice(policy(budget=budget, budget_unit=unit), 0, scores, costs) == expected


def test_no_global_generator_moves() -> None:
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    choice(policy(proxy="constant"), 3)
    assert (random.getstate(), str(np.random.get_state())) == before[:2]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
