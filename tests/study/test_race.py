"""The halving of a race, from made-up losses: its price, who goes on, what the winner is run against."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.study.cells import RECIPE, finish

from rankwise.study.folder import StudyFolder
from rankwise.study.grid import Rates
from rankwise.study.plan import Cell, Group
from rankwise.study.race import LEAST_STEPS, Race, Standing, rungs, shortened
from rankwise.study.tuning import ending, race_tables, tried_table

ARMS = ("all-linear", "q,v", "MLP", "LoR2C", "residual", "plan", "yours")
RATES = Rates.model_validate({"from": 1e-3, "to": 1e-2, "factor": 10**0.5})


def race(cost: float = 4.0, full: int = 3000) -> Race:
    groups = [
        Group(arm=name, point={}, content={"training": {"learning_rate": 10**-2.5, "epochs": 3}}, rates=RATES)
        for name in ARMS
    ]
    return Race(
        groups=groups,
        rungs=rungs(len(groups) * 3, full=full, cost=cost),
        default="all-linear",
        yours="yours",
        seed=5,
        confirm=[6, 7, 8],
        full=full,
    )


def play(own: Race, worth: dict[str, float]) -> tuple[Standing, list[Cell]]:
    """Finish all cells: an arm's worth, and a little for a rate off the middle one."""
    found: dict[str, float] = {}
    while True:
        cells = own.plan(found).cells
        fresh = [cell for cell in cells if cell.name not in found]
        if not fresh:
            return own.standing(found), cells
        for cell in fresh:
            arm = next(group.arm for group in own.groups if group.name == cell.group)
            found[cell.name] = worth.get(arm, 1.0) + 0.01 * abs(math.log((cell.rate or 0) / 10**-2.5))


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 40), st.integers(100, 20_000), st.floats(0.5, 20))
def test_a_race_never_costs_more_than_was_said(candidates: int, full: int, cost: float) -> None:
    try:
        found = rungs(candidates, full=full, cost=cost)
    except ValueError as error:
        enough = float(str(error).split("--cost ")[-1].split(" ")[0])
        found, cost = rungs(candidates, full=full, cost=enough), enough  # what the message asks for is enough
    assert sum(rung.candidates * rung.steps for rung in found) <= cost * full + 1e-6
    assert found[0].candidates == candidates
    steps = [rung.steps for rung in found]
    assert steps[0] >= LEAST_STEPS
    assert steps == sorted(steps)
    assert steps[-1] <= full
    if len(steps) > 1 and steps[0] > LEAST_STEPS:
        assert all(3 * before <= after for before, after in itertools.pairwise(steps))


def test_the_best_wins_and_meets_the_tuned_default() -> None:
    own = race()
    standing, cells = play(own, {"LoR2C": 0.5, "all-linear": 3.0})
    assert standing.winner is not None
    assert standing.rival is not None
    assert own.groups[standing.winner[0]].arm == "LoR2C"
    assert standing.winner[1] == pytest.approx(10**-2.5, rel=1e-3)
    assert own.groups[standing.rival[0]].arm == "all-linear"  # last of all, and there to the end
    assert [len(own) for own in standing.rounds] == [rung.candidates for rung in own.rungs]
    ran = sum(cell.content["training"]["max_steps"] for cell in cells if cell.role == "choose")
    assert ran <= 4.0 * own.full
    assert {cell.seed for cell in cells if cell.role == "choose"} == {5}
    whole = [cell for cell in cells if cell.role == "report"]
    assert sorted({cell.seed for cell in whole}) == [6, 7, 8]
    assert len(whole) == 6
    assert all(cell.content["training"].get("max_steps") is None for cell in whole)


def test_where_the_default_wins_the_recipe_as_it_came_is_the_rival() -> None:
    own = race()
    standing, _ = play(own, {"all-linear": 0.5})
    assert standing.winner is not None
    assert standing.rival is not None
    assert own.groups[standing.winner[0]].arm == "all-linear"
    assert own.groups[standing.rival[0]].arm == "yours"


def test_without_the_recipe_a_default_that_wins_is_not_called_what_there_was() -> None:
    own = race()
    own = own.model_copy(update={"groups": [group for group in own.groups if group.arm != "yours"]})
    standing, _ = play(own, {"all-linear": 0.5})
    assert standing.rival is None
    said = ending(own, standing, [])
    assert "Your recipe did not race, so that nothing can be said against it" in said
    assert "what there was before" not in said


def test_a_recipe_that_is_another_arm_runs_the_rounds_once_and_is_still_what_the_default_is_run_against() -> None:
    own = race()
    groups = [group if group.arm != "yours" else group.model_copy(update={"rates": None}) for group in own.groups]
    own = own.model_copy(update={"groups": groups, "rungs": rungs(18, full=3000, cost=4.0)})
    standing, cells = play(own, {"all-linear": 0.5})
    assert standing.rival == standing.winner, "the same method at the same rate is not run against itself"
    assert not any(cell.group == "yours" for cell in cells)
    assert "confirmed it and changed nothing" in ending(own, standing, [])
    groups[-1] = groups[-1].model_copy(update={"content": {**groups[-1].content, "training": {"learning_rate": 1e-2}}})
    standing, cells = play(own.model_copy(update={"groups": groups}), {"all-linear": 0.5})
    assert standing.rival == (len(groups) - 1, 1e-2)
    assert {cell.role for cell in cells if cell.group == "yours"} == {"report"}


@pytest.mark.parametrize(
    ("method", "short"),
    [
        ({"name": "adalora", "tinit": 20, "tfinal": 40, "deltaT": 5}, {"tinit": 2, "tfinal": 4, "deltaT": 1}),
        ({"name": "adalora", "tinit": 20, "tfinal": 68}, {"tinit": 1, "tfinal": 7, "deltaT": 1}),  # two steps stay
        ({"name": "adalora"}, {"tinit": 0, "tfinal": 0, "deltaT": 1}),
        ({"name": "lor2c", "merges": 3}, {"edit_unit": "steps"}),
        ({"name": "lor2c"}, {}),
        ({"name": "heterolora", "mode": "dynamic", "search_every": 30}, {"search_every": 3}),
        ({"name": "lora", "r": 4}, {}),
    ],
    ids=str,
)
def test_what_counts_steps_of_a_whole_run_counts_fewer_in_a_round(
    method: dict[str, Any], short: dict[str, Any]
) -> None:
    found = shortened({"method": method, "training": {"warmup": 0.06}}, 10, 90)
    assert found["method"] == {**method, **short}
    assert found["training"] == {"warmup": 0.06, "max_steps": 10, "evaluate": "never", "every": None}


def test_a_warmup_in_steps_is_the_same_part_of_a_round() -> None:
    def warmup(given: float) -> float:
        return float(shortened({"training": {"warmup": given}}, 10, 90)["training"]["warmup"])

    assert [warmup(given) for given in (0, 0.5, 1, 20, 90, 200)] == pytest.approx([0, 0.5, 1 / 90, 20 / 90, 10, 10])


def test_candidates_that_fail_leave() -> None:
    own = race()
    standing, _ = play(own, dict.fromkeys(ARMS[1:], math.inf))
    assert standing.winner is not None
    assert own.groups[standing.winner[0]].arm == "all-linear"
    nothing, cells = play(own, dict.fromkeys(ARMS, math.inf))
    assert nothing.winner is None
    assert len(cells) == 21
    assert "no candidate" in nothing.notes[0]


def test_a_race_of_which_one_cell_has_finished_has_its_table() -> None:
    own = race()
    found = {own.plan({}).cells[4].name: 0.25}
    table = tried_table(own, own.standing(found), found)
    assert len(table.rows) == 21
    assert table.rows[0][:3] == ["q,v", pytest.approx(10**-2.5, rel=1e-3), "0.2500"]
    assert all(value is None for row in table.rows[1:] for value in row[2:])


def test_a_winner_at_the_edge_says_so() -> None:
    own = race()
    found: dict[str, float] = {}
    while fresh := [cell for cell in own.plan(found).cells if cell.name not in found]:
        found |= {cell.name: 1 / (cell.rate or 1) for cell in fresh}
    assert "is the highest rate that ran" in own.plan(found).notes[0]


def test_a_race_is_the_same_after_json() -> None:
    assert Race.model_validate_json(race().model_dump_json()) == race()


def test_what_is_to_be_said_of_a_race_stands_in_sentences(tmp_path: Path) -> None:
    own = race()
    groups = [group.model_copy(update={"content": {**RECIPE, **group.content}}) for group in own.groups]
    own, folder = own.model_copy(update={"groups": groups}), StudyFolder(tmp_path)
    folder.start(own, "rankwise tune mine.yaml")
    while fresh := [cell for cell in folder.plan(own).cells if not folder.run(cell).finished]:
        for cell in fresh:
            finish(folder, cell, 1 / (cell.rate or 1))
    *_, anew = race_tables(folder, own)
    assert "is the highest rate that ran: a higher one may be better still. Mean and standard deviation" in anew.note
