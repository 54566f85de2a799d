"""Studies from the first cell to the tables, through the command line, and what is said of them."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.study.cells import RECIPE, finish, started, two_arms
from tests.study.conftest import Write
from typer.testing import CliRunner, Result

from rankwise.runs.folder import RunFolder
from rankwise.study.folder import StudyFolder
from rankwise.study.grid import Rates
from rankwise.study.plan import Group
from rankwise.study.race import Race
from rankwise.study.running import check_failed, counted, failures_told, run_study, study_status, write_tables
from rankwise.study.working import Work
from rankwise_cli import app
from rankwise_cli_study import _command


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


ONE_ARM: dict[str, Any] = {"arms": {"four": {}}, "rates": None, "seeds": {"report": [1]}}


def test_a_study_runs_tells_and_goes_on(write: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = call("study", "run", write(**ONE_ARM), "--out", out)
    assert done.exit_code == 0, done.output
    assert "1/1" in done.output
    figures = RunFolder(out / "four" / "report-rate-own-seed-1").figures()
    assert figures["seed"] == 1
    assert "validation" in figures["metrics"]["last"]
    before = (out / "four" / "report-rate-own-seed-1" / "metrics.json").stat().st_mtime_ns
    more = call("study", "run", write(**{**ONE_ARM, "arms": {"four": {}, "two": {"method.r": 2}}}), "--out", out)
    assert more.exit_code == 0, more.output
    assert (out / "four" / "report-rate-own-seed-1" / "metrics.json").stat().st_mtime_ns == before  # finished stays
    assert "two" in call("study", "status", out).output
    table = call("study", "table", out).output
    assert "| two |" in table
    assert "2 of 2 runs: `rankwise" in table
    csv = tmp_path / "table.csv"
    assert call("study", "table", out, "--format", "csv", "--out", csv).exit_code == 0
    assert csv.read_text().count("\n") == 3
    other = call("study", "run", write(**{**ONE_ARM, "arms": {"four": {"method.r": 1}}}), "--out", out)
    assert other.exit_code == 2
    assert "method.r=4" in " ".join(other.output.split())


def test_a_part_of_a_study_runs_first_and_the_rest_later(write: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    study = write(**{**ONE_ARM, "arms": {"four": {}, "two": {"method.r": 2}}})
    done = call("study", "run", study, "--out", out, "--only", "tw*")
    assert done.exit_code == 0, done.output
    assert "1 runs known by now, 0 of them done" in done.output
    assert "1/1" in done.output
    assert not (out / "four").exists()
    assert call("study", "run", study, "--out", out).exit_code == 0
    assert RunFolder(out / "four" / "report-rate-own-seed-1").finished
    wrong = call("study", "run", study, "--out", out, "--only", "three-*")
    assert wrong.exit_code == 2
    said = " ".join(wrong.output.split())
    assert "--only 'three-*' fits no group: they are four, two, and * stands for any part of a name" in said


def test_a_failed_cell_keeps_its_error_and_the_others_run(write: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arms = {"four": {}, "wrong": {"method.target_modules": ["nothing"]}}
    done = call("study", "run", write(**{**ONE_ARM, "arms": arms}), "--out", out)
    assert done.exit_code == 1, done.output
    assert "1 of 2 runs failed (wrong/report-rate-own-seed-1: ValueError" in " ".join(done.output.split())
    assert "failed: ValueError: method.target_modules: 'nothing' names no module" in done.output
    error = (out / "wrong" / "report-rate-own-seed-1" / "error.txt").read_text()
    assert "Traceback" in error
    assert "names no module" in " ".join(call("study", "status", out).output.split())
    assert "1 failed" in call("study", "table", out).output
    arms["wrong"] = {"method.target_modules": ["value"]}  # nothing of it ran, so it may be put right
    again = call("study", "run", write(**{**ONE_ARM, "arms": arms}), "--out", out, "--retry-failed")
    assert "2/2" in again.output
    assert not (out / "wrong" / "report-rate-own-seed-1" / "error.txt").exists()


def test_where_every_run_fails_the_failures_are_told(write: Write, tmp_path: Path) -> None:
    arms = {"wrong": {"method.target_modules": ["nothing"]}}
    done = call("study", "run", write(**{**ONE_ARM, "arms": arms}), "--out", tmp_path / "out")
    assert done.exit_code == 1, done.output
    assert "1 of 1 runs failed (wrong/report-rate-own-seed-1: ValueError" in " ".join(done.output.split())


def test_failures_are_told_after_the_tables_and_other_mistakes_stay_what_they_are(tmp_path: Path) -> None:
    folder = started(tmp_path)
    with pytest.raises(ValueError, match="no table"), failures_told(folder, folder.planner()):
        raise ValueError("no table")
    folder.fail(folder.plan(folder.planner()).cells[0], "KeyError: y")
    shown = []
    with pytest.raises(RuntimeError, match="1 of 4 runs failed"), failures_told(folder, folder.planner()):
        shown.append("table")
    assert shown == ["table"]


def test_a_dry_run_counts_and_keeps_nothing(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("study", "run", write(), "--dry-run")
    assert done.exit_code == 0, done.output
    assert "2 groups: 12 runs to choose rates (more where a grid has to grow), 4 for the report\n" in done.output
    assert not (tmp_path / "study-runs").exists()


def test_a_dry_run_of_a_part_counts_that(write: Write) -> None:
    done = call("study", "run", write(), "--dry-run", "--only", "two")
    assert done.exit_code == 0, done.output
    assert "four" not in done.output
    assert "1 groups: 6 runs to choose rates (more where a grid has to grow), 2 for the report\n" in done.output


RATES = Rates.model_validate({"from": 1e-3, "to": 4e-3, "factor": 2})


def test_runs_are_counted_as_they_will_be() -> None:
    assert counted(two_arms(RATES)) == (
        "2 groups: 6 runs to choose rates (more where a grid has to grow), 4 for the report"  # 2 x 3 rates x 1 seed
    )
    assert counted(two_arms(report=(7, 8, 9))) == (
        "2 groups: 0 runs to choose rates (more where a grid has to grow), 6 for the report"
    )
    mixed = two_arms(RATES)
    fixed = mixed.groups[1].model_copy(update={"rates": None})
    assert "3 runs to choose rates" in counted(mixed.model_copy(update={"groups": [mixed.groups[0], fixed]}))


def test_an_engine_that_is_none_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--engine='spark' is not one of 'local', 'ray'"):
        run_study(two_arms(), Work(tmp_path / "out"), console=Console(), command="", engine="spark")
    assert not (tmp_path / "out").exists()


def test_failed_runs_are_named_with_the_first_line_of_their_errors(tmp_path: Path) -> None:
    folder = started(tmp_path)
    check_failed(folder, folder.planner())
    first, second, *_ = folder.plan(folder.planner()).cells
    folder.fail(first, "ValueError: x\n\nTraceback")
    folder.fail(second, "KeyError: y")
    with pytest.raises(RuntimeError) as caught:
        check_failed(folder, folder.planner())
    assert str(caught.value) == (
        f"2 of 4 runs failed ({first.name}: ValueError: x; {second.name}: KeyError: y): --retry-failed runs them again"
    )
    check_failed(folder, folder.planner(), ["b"])  # both are of a


def test_a_table_names_a_command_that_runs_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["rankwise", "study", "run", "s.yaml", "--only", "a-*", "--only=b", "--out", "o"])
    assert _command() == "rankwise study run s.yaml --out o"


def test_tables_are_written_in_one_move(tmp_path: Path) -> None:
    folder = started(tmp_path / "study")
    with pytest.raises(ValueError, match="no run of the report has finished yet"):
        write_tables(folder.root)
    for number, cell in enumerate(folder.plan(folder.planner()).cells):
        finish(folder, cell, 0.25 + 0.125 * number, validation={"loss": 0.25 + 0.125 * number, "accuracy": 0.5})
    text = write_tables(folder.root, out=tmp_path / "deep" / "table.md")
    assert (tmp_path / "deep" / "table.md").read_text(encoding="utf-8") == text
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["table.md"]
    assert text.startswith("### MRPC (validation)\n")
    assert "4 of 4 runs: `rankwise study run study.yaml`." in text
    rows = list(csv.DictReader(io.StringIO(write_tables(folder.root, table_format="csv"))))
    assert [float(row["loss, last, mean"]) for row in rows] == [2 * 0.3125, 2 * 0.5625]


def test_any_arm_can_be_what_the_others_are_paired_with(tmp_path: Path) -> None:
    """Each run's loss is 0.125 above that before it, and an arm has two runs: the second arm is 0.25 above."""
    folder = started(tmp_path)
    cells = folder.plan(folder.planner()).cells
    for number, cell in enumerate(cells):
        finish(folder, cell, 0.25, validation={"loss": 0.25 + 0.125 * number, "accuracy": 0.5})
    arms = list(dict.fromkeys(group.arm for group in folder.planner().groups))
    differences = {}
    for baseline, other in (arms, arms[::-1]):
        rows = list(csv.DictReader(io.StringIO(write_tables(folder.root, table_format="csv", baseline=baseline))))
        (row,) = [row for row in rows if row["arm"] == other]
        differences[baseline] = float(row[f"loss minus {baseline}, mean"])
    assert differences == {arms[0]: 0.25, arms[1]: -0.25}
    with pytest.raises(ValueError, match="--baseline='c' is not one of 'a', 'b'"):
        write_tables(folder.root, baseline="c")


def test_a_race_has_its_tables_elsewhere(tmp_path: Path) -> None:
    group = Group(arm="a", point={}, content=RECIPE, rates=None)
    race = Race(groups=[group], rungs=[], default="a", yours="yours", seed=1, confirm=[2], full=10)
    StudyFolder(tmp_path).start(race, "rankwise tune")
    with pytest.raises(ValueError, match=r"holds a race, whose tables are in .*report\.md: this is for a study"):
        write_tables(tmp_path)
    with pytest.raises(ValueError, match="--format='html' is not one of 'markdown', 'csv', 'latex'"):
        write_tables(tmp_path, table_format="html")


def shown(root: Path) -> Any:
    """The table among what is shown of a study."""
    return study_status(root).renderables[1]


def test_a_status_looks_into_the_queue_only_where_there_is_one(tmp_path: Path) -> None:
    folder = started(tmp_path)
    assert shown(tmp_path).row_count == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.json"], "asking leaves nothing behind"
    names = [cell.name for cell in folder.plan(folder.planner()).cells]
    with Work(tmp_path).queue(folder) as queue:
        queue.fill(names)
        assert queue.claim() is not None
    running = [list(column.cells) for column in shown(tmp_path).columns][3]
    assert running == ["1", "0"]
    with pytest.raises(FileNotFoundError, match="gone holds no study"):
        study_status(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()
