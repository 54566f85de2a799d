"""From a budget to ranks: never above it, nothing that fits left out, the same for the same draw."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies.where_it_pays.layout import alone, even, greedy, overlap, spent, spread

COSTS = {"a": 128, "b": 96, "c": 236}


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(1, 300), min_size=1, max_size=8),
    st.integers(0, 5_000),
    st.integers(0, 100),
)
def test_spread_fills_the_budget_evenly(costs: dict[str, int], budget: int, seed: int) -> None:
    if budget < min(costs.values()):
        with pytest.raises(ValueError, match="cheapest component"):
            spread(costs, budget, draw(seed))
        return
    ranks = spread(costs, budget, draw(seed))
    left = budget - spent(ranks, costs)
    assert 0 <= left < min(costs.values())
    assert ranks == spread(costs, budget, draw(seed))


@pytest.mark.parametrize("budget", [460, 920, 4_600])
def test_spread_is_uniform_where_the_budget_is_a_whole_number_of_ranks(budget: int) -> None:
    assert spread(COSTS, budget, draw()) == dict.fromkeys(COSTS, budget // 460)


def test_spread_draws_which_paths_get_one_below_rank_one() -> None:
    costs = {f"p{i}": 10 for i in range(20)}
    drawn = [frozenset(spread(costs, 50, draw(seed))) for seed in range(30)]
    assert all(len(names) == 5 for names in drawn)
    assert len(set(drawn)) > 20
    assert set().union(*drawn) == set(costs)


def test_spread_respects_the_largest_rank() -> None:
    assert spread(COSTS, 100_000, draw(), largest={"a": 2, "b": 3, "c": 1}) == {"a": 2, "b": 3, "c": 1}


def test_even_is_one_rank_everywhere_or_rank_one_somewhere() -> None:
    assert even(COSTS, 1_379, draw(), largest=64) == dict.fromkeys(COSTS, 2)
    assert even(COSTS, 100_000, draw(), largest=64) == dict.fromkeys(COSTS, 64)
    below = even(COSTS, 250, draw(), largest=64)
    assert set(below.values()) == {1}
    assert spent(below, COSTS) <= 250


def test_greedy_equals_the_textbook_rule() -> None:
    rng = draw(3)
    values = {name: sorted(rng.random(4).tolist(), reverse=True) for name in COSTS}
    expected: dict[str, int] = {}
    left = 700
    order = sorted(itertools.product(COSTS, range(4)), key=lambda item: -values[item[0]][item[1]] / COSTS[item[0]])
    for name, _ in order:
        if COSTS[name] <= left:
            expected[name] = expected.get(name, 0) + 1
            left -= COSTS[name]
    assert greedy(values, COSTS, 700) == expected


def test_greedy_refuses_a_budget_below_the_cheapest() -> None:
    with pytest.raises(ValueError, match="96 parameters"):
        greedy({name: [1.0] for name in COSTS}, COSTS, 95)


@pytest.mark.parametrize(("name", "rank"), [("a", 3), ("b", 4), ("c", 2)])
def test_alone_comes_nearest_to_the_size(name: str, rank: int) -> None:
    assert alone(COSTS, name, 400) == {name: rank}
    assert all(abs(rank * COSTS[name] - 400) <= abs(other * COSTS[name] - 400) for other in range(1, 9))


def test_overlap_counts_components() -> None:
    assert overlap({"a": 2, "b": 1}, {"a": 2, "b": 1}) == 1
    assert overlap({"a": 2}, {"b": 1}) == 0
    assert overlap({"a": 2, "b": 1}, {"a": 1, "c": 1}) == pytest.approx(1 / 4)
