"""How far a study is: cells by state, the time left from what has finished, the first line of an error."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.study.cells import finish, started, two_arms

from rankwise.study.folder import StudyFolder
from rankwise.study.plan import Plan
from rankwise.study.status import duration, error_line, outcome, status_table, time_left


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """Four cells: two of ``a`` and two of ``b``."""
    return started(tmp_path)


def plan_of(folder: StudyFolder) -> Plan:
    return folder.plan(folder.planner())


def printed(table: object) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(table)
    return out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (60 * 89, "89 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
        (86400, "24.0 h"),
        (3_600_000, "1000.0 h"),
    ],
)
def test_a_time_as_people_say_it(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_the_time_left_is_the_mean_of_the_group_or_of_all(folder: StudyFolder) -> None:
    first, second, *b = plan_of(folder).cells
    assert time_left(folder, plan_of(folder), workers=1) is None
    finish(folder, first, 0.5, seconds=10)
    assert time_left(folder, plan_of(folder), workers=1) == 3 * 10
    finish(folder, b[0], 0.5, seconds=40)
    assert time_left(folder, plan_of(folder), workers=1) == 10 + 40
    assert time_left(folder, plan_of(folder), workers=2) == 25
    assert time_left(folder, plan_of(folder), workers=0) == 50  # nobody is at work: as if one were
    folder.fail(second, "out of memory")
    assert time_left(folder, plan_of(folder), workers=1) == 40, "what failed is not run again"
    finish(folder, b[1], 0.5, seconds=1)
    assert time_left(folder, plan_of(folder), workers=1) == 0


def test_a_line_for_a_cell_that_came_to_its_end(folder: StudyFolder) -> None:
    first, second, *_ = plan_of(folder).cells
    finish(folder, first, 0.25, seconds=60)
    assert outcome(folder, plan_of(folder), first, workers=3) == f"[bold]1/4[/], 60 s left  {first.name}  loss 0.2500"
    folder.fail(second, "ValueError: no [red] here\n\nTraceback")
    line = outcome(folder, plan_of(folder), second, workers=1)
    out = io.StringIO()
    Console(file=out, width=200).print(line)
    assert out.getvalue() == f"2/4, 2 min left  {second.name}  failed: ValueError: no [red] here\n"
    assert error_line(folder, second) == "ValueError: no [red] here"


def test_a_loss_that_is_no_number_is_said_as_it_counts(folder: StudyFolder) -> None:
    first, *_ = plan_of(folder).cells
    finish(folder, first, math.nan)
    assert outcome(folder, plan_of(folder), first, workers=1).endswith("loss inf")


def test_the_table_counts_cells_by_group_and_state(folder: StudyFolder) -> None:
    first, second, third, fourth = plan_of(folder).cells
    finish(folder, first, 0.5, seconds=60)
    folder.fail(third, "ValueError: [b] is [red]bad[/]\nmore")
    whole = status_table(folder, plan_of(folder), running=[fourth.name, first.name, "of another study"])
    table: Any = whole.renderables[1]
    assert [column.header for column in table.columns] == ["group", "finished", "failed", "running", "waiting"]
    rows = [list(column.cells) for column in table.columns]
    assert [[str(cell) for cell in row] for row in zip(*rows, strict=True)] == [
        ["a", "1", "0", "0", "1"],
        ["b", "0", "1", "1", "0"],
    ]
    shown = printed(whole)
    assert f"{folder.root}: 4 cells known by now" in shown
    assert f"{third.name}: ValueError: [b] is [red]bad[/]" in shown
    assert "more" not in shown
    assert "40 s left with 3 at work" in shown  # two cells of a minute each
    assert second.name not in shown


def test_a_study_that_has_not_begun_has_no_time_left_and_its_notes_are_shown(tmp_path: Path) -> None:
    folder = started(tmp_path / "[new]", two_arms())
    plan = plan_of(folder)
    shown = printed(status_table(folder, plan._replace(notes=["a: [0.1] is the edge"]), running=[]))
    assert "left" not in shown
    finish(folder, plan.cells[0], 0.5, seconds=10)
    assert "30 s left with 1 at work" in printed(status_table(folder, plan, running=[]))  # as if one were
    assert "a: [0.1] is the edge" in shown
    assert "[new]: 4 cells" in shown
