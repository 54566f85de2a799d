"""Which rate is chosen, and which cells there are, from made-up losses."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.study.grid import LARGEST_GROWTH, Rates
from rankwise.study.plan import Cell, Group, Seeds, Study


def rates(low: float = 1e-3, to: float = 8e-3, factor: float = 2.0) -> Rates:
    return Rates.model_validate({"from": low, "to": to, "factor": factor})


def study(of: Rates | None) -> Study:
    group = Group(arm="a", point={}, content={"training": {"batch_size": 2}}, rates=of)
    return Study(title="", groups=[group], seeds=Seeds(choose=[0, 1], report=[7, 8, 9]), baseline="a")


def play(of: Study, optimum: float) -> tuple[list[Cell], list[str]]:
    """Finish every cell with a loss that is lowest at the optimum, until no new cell appears."""
    found: dict[str, float] = {}
    while True:
        plan = of.plan(found)
        fresh = [cell for cell in plan.cells if cell.name not in found]
        if not fresh:
            return plan.cells, plan.notes
        for cell in fresh:
            assert cell.rate is not None
            found[cell.name] = math.log(cell.rate / optimum) ** 2 + 0.01 * cell.seed


def test_first_the_choice_then_fresh_seeds_at_the_best_rate() -> None:
    own = study(rates())
    first = own.plan({}).cells
    assert [(cell.rate, cell.seed, cell.role) for cell in first] == [
        (rate, seed, "choose") for rate in rates().grid() for seed in (0, 1)
    ]
    cells, notes = play(own, 2.1e-3)
    assert [(cell.rate, cell.seed) for cell in cells if cell.role == "report"] == [(2e-3, 7), (2e-3, 8), (2e-3, 9)]
    assert cells[-1].content == {"training": {"batch_size": 2, "learning_rate": 2e-3}, "seed": 9}
    assert notes == []


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-4, 8e-2))
def test_the_chosen_rate_is_the_nearest_and_never_the_edge(optimum: float) -> None:
    cells, notes = play(study(rates()), optimum)
    grid = sorted({cell.rate for cell in cells if cell.role == "choose" and cell.rate})
    (rate,) = {cell.rate for cell in cells if cell.role == "report"}
    assert rate is not None
    assert grid[0] < rate < grid[-1]
    assert abs(math.log(rate / optimum)) <= min(abs(math.log(each / optimum)) for each in grid) + 1e-9
    assert len(notes) == len(grid) - 4
    assert len({cell.name for cell in cells}) == len(cells)


def test_a_grid_that_never_ends_is_given_up_with_words() -> None:
    cells, notes = play(study(rates()), 1e9)
    assert len({cell.rate for cell in cells}) == 4 + LARGEST_GROWTH
    assert {cell.role for cell in cells} == {"choose"}
    assert "still the best rate, and the edge" in notes[-1]


def test_a_rate_with_a_failed_seed_is_not_chosen() -> None:
    own = study(rates())
    cells = own.plan({}).cells
    found = {cell.name: abs(math.log((cell.rate or 0) / 2e-3)) for cell in cells}
    found[own.groups[0].cell(2e-3, 1, "choose").name] = math.inf
    assert {cell.rate for cell in own.plan(found).cells if cell.role == "report"} <= {4e-3, None}
    everything = own.plan(dict.fromkeys(found, math.inf))
    assert "no rate gave a loss" in everything.notes[0]
    assert {cell.role for cell in everything.cells} == {"choose"}


def test_a_best_rate_beside_one_that_failed_says_so() -> None:
    own = study(rates())
    found = {cell.name: abs(math.log((cell.rate or 0) / 2e-3)) for cell in own.plan({}).cells}
    assert own.plan(found).notes == []
    found[own.groups[0].cell(4e-3, 1, "choose").name] = math.inf
    assert own.plan(found).notes == ["a: 0.002 is the best rate, but 0.004 beside it failed or had no finite loss"]


def test_a_seed_that_chose_is_run_anew_where_it_reports() -> None:
    """What chose a rate has not seen the reported split, so that its figures are none of the report's."""
    group = study(rates()).groups[0]
    assert group.cell(2e-3, 0, "choose").name != group.cell(2e-3, 0, "report").name


def test_without_rates_the_recipes_own_is_reported() -> None:
    cells = study(None).plan({}).cells
    assert [(cell.rate, cell.seed, cell.role) for cell in cells] == [(None, seed, "report") for seed in (7, 8, 9)]
    assert cells[0].content == {"training": {"batch_size": 2}, "seed": 7}


def test_a_study_is_the_same_after_json() -> None:
    own = study(rates())
    assert Study.model_validate_json(own.model_dump_json()) == own
    with pytest.raises(ValueError, match="factor"):
        rates(factor=1.0)
