"""What is on before anything was searched."""

from __future__ import annotations

import pytest
from tests.models import one_of_trio
from torch import nn

import rankwise
from rankwise.paths.path_set import path_set


def on(model: nn.Module) -> set[str]:
    return {path.name for path in path_set(model).enabled}


@pytest.mark.parametrize("budget", [0, 0.0, 0.3, 1.0, 100])
@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_the_first_allocation_obeys_the_budget(mode: str, budget: float) -> None:
    model = one_of_trio("llama", mode=mode, budget=budget)
    counts, plan = path_set(model).counts(), rankwise.plan(model)
    assert counts["enabled"] <= plan.budget
    if budget == 1.0:
        assert counts["enabled"] == counts["resident"]
    first = on(model)
    assert on(one_of_trio("llama", mode=mode, budget=budget)) == first
    differ = [on(one_of_trio("llama", mode=mode, budget=budget, seed=seed)) != first for seed in range(1, 5)]
    assert any(differ) == (budget in (0.3, 100))


def test_a_budget_below_the_cheapest_path_is_told() -> None:
    with pytest.warns(UserWarning, match="the cheapest path costs 48: no path will ever train"):
        model = one_of_trio("llama", mode="dynamic", budget=40)
    assert not on(model)


def test_without_a_search_everything_is_on() -> None:
    model = one_of_trio("bert", mode="off")
    assert on(model) == set(rankwise.named_paths(model))
