"""The runs below a folder and what each says at a glance: finished, stopped, failed, damaged, none at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankwise.runs.folder import RunFolder
from rankwise.runs.results.found import (
    DAMAGED,
    FAILED,
    FINISHED,
    UNFINISHED,
    Summary,
    find_runs,
    name_of,
    newest_checkpoint,
    summarise,
)

KEPT = Path(__file__).resolve().parents[2] / "data" / "version-0.1"
RECIPE: dict[str, Any] = {"model": {"name": "m"}, "method": {"name": "lora"}}


def config(folder: Path, content: Any = RECIPE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    return folder


def found(place: Path) -> list[str]:
    return [run.root.relative_to(place).as_posix() for run in find_runs(place)]


def at_a_glance(folder: Path) -> Summary:
    return summarise(RunFolder(folder), folder)


def test_runs_are_found_by_name_at_any_depth_and_none_inside_another(tmp_path: Path) -> None:
    for name in ("b", "a/deep", "a/é", "b/adapter/inner", "c10", "c9", ".hidden/x", "a/.cache/y"):
        config(tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert found(tmp_path) == ["a/deep", "a/é", "b", "c10", "c9"]
    assert found(tmp_path / "b") == ["."]
    assert found(tmp_path / ".hidden") == ["x"], "what is asked for is looked at, whatever its name"


@pytest.mark.parametrize(
    ("content", "is_run"),
    [
        (RECIPE, True),
        ({"model": 3, "method": 4}, True),
        ({"model": {}}, False),
        ({"title": "a site of ours"}, False),
        ("model: [", True),  # damaged: told of, not passed over
        ("- a\n", True),
        ("base: gone.yaml\nmodel: {name: m}\n", True),
    ],
    ids=str,
)
def test_a_config_is_a_run_if_it_has_model_and_method_or_can_not_be_read(
    tmp_path: Path, content: Any, is_run: bool
) -> None:
    config(tmp_path / "good")
    config(tmp_path / "one", content)
    assert found(tmp_path) == ["good", *(["one"] if is_run else [])]


def test_a_recipe_whose_base_is_gone_is_damaged_and_the_others_are_listed(tmp_path: Path) -> None:
    folder = config(tmp_path / "a", "base: gone.yaml\nmodel: {name: m}\nmethod: {name: lora}\n")
    config(tmp_path / "b")
    states = {run.root.name: summarise(run, tmp_path) for run in find_runs(tmp_path)}
    assert (states["a"].state, states["b"].state) == (DAMAGED, UNFINISHED)
    assert str(folder / "gone.yaml") in states["a"].note


@pytest.mark.parametrize(("depth", "is_run"), [(1, True), (2, True), (3, True), (4, False)])
def test_an_error_is_a_run_of_the_study_above_it(tmp_path: Path, depth: int, is_run: bool) -> None:
    config(tmp_path / "a")
    (tmp_path / "study.json").write_text("{}")
    cell = tmp_path.joinpath(*"wxyz"[:depth])
    cell.mkdir(parents=True)
    (cell / "error.txt").write_text("ValueError: x")
    assert (len(found(tmp_path)) == 2) == is_run


def test_where_there_is_no_run_what_one_looks_like_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*gone: give a run folder"):
        find_runs(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*config\.yaml: give a run folder"):
        find_runs(config(tmp_path / "run") / "config.yaml")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"empty holds no run and no folder in it does: a run has a config\.yaml"
    ):
        find_runs(tmp_path / "empty")


def test_a_name_is_relative_to_what_was_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path / "study" / "a" / "b")
    assert name_of(run, tmp_path / "study") == "a/b"
    assert name_of(run, run.root) == "b"
    assert name_of(run, tmp_path / "elsewhere") == "b"
    run.root.mkdir(parents=True)
    monkeypatch.chdir(run.root)
    assert name_of(RunFolder(Path()), Path()) == "b"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"task": "", "seed": 0, "budget": None, "learning_rate": None, "steps": None}),
        ({"data": {"task": "mrpc"}, "seed": 7}, {"task": "mrpc", "seed": 7}),
        ({"data": {"train_file": "/a/b/reviews.csv"}}, {"task": "reviews.csv"}),
        ({"data": {"dataset": "stanfordnlp/imdb"}}, {"task": "imdb"}),
        ({"data": None, "training": None}, {"task": "", "steps": None}),
        ({"training": {"max_steps": 9, "learning_rate": 0.5}}, {"steps": 9, "learning_rate": 0.5}),
        ({"training": {"max_steps": -1}}, {"steps": None}),
        ({"method": {"name": "heterolora", "budget": 0.25}}, {"method": "heterolora", "budget": 0.25}),
    ],
)
def test_a_run_that_has_only_begun_says_what_its_recipe_says(
    tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    summary = at_a_glance(config(tmp_path, {**RECIPE, **changes}))
    assert (summary.state, summary.note, summary.model) == (UNFINISHED, "no checkpoint yet", "m")
    assert {name: getattr(summary, name) for name in expected} == expected
    assert (summary.step, summary.parameters, summary.figures) == (None, None, {})


@pytest.mark.parametrize("method", ["heterolora", "lor2c"])
def test_a_finished_run_has_the_figures_of_its_file(method: str) -> None:
    folder = KEPT / method / "finished"
    figures = json.loads((folder / "metrics.json").read_text())
    summary = at_a_glance(folder)
    assert (summary.state, summary.method, summary.task) == (FINISHED, method, figures["task"])
    assert summary.parameters == figures["parameters"]["trainable"]
    assert summary.head == figures["parameters"]["head"]
    assert summary.seconds == figures["seconds"]["train"]
    assert summary.step == summary.steps == figures["metrics"]["last"]["step"]
    for which in ("last", "dev_selected"):
        splits = {name: value for name, value in figures["metrics"][which].items() if isinstance(value, dict)}
        assert summary.figures[which] == splits != {}
    assert json.loads(json.dumps(summary.to_dict()))["folder"] == str(folder)


def test_an_unfinished_run_has_what_its_newest_checkpoint_knows() -> None:
    folder = KEPT / "heterolora" / "interrupted"
    checkpoint = folder / "checkpoints" / "checkpoint-4"
    summary = at_a_glance(folder)
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    measured = [entry for entry in state["log_history"] if "eval_loss" in entry][-1]
    assert (summary.state, summary.note, summary.step, summary.steps) == (UNFINISHED, "at step 4 of 6", 4, 6)
    assert summary.figures["last"]["dev"]["loss"] == measured["eval_loss"]
    assert not {"step", "epoch"} & set(summary.figures["last"]["dev"])
    assert summary.seconds == json.loads((checkpoint / "rankwise_run.json").read_text())["seconds"]
    assert summary.parameters == json.loads((checkpoint / "allocation.json").read_text())["parameters"]["enabled"]


def test_the_newest_checkpoint_is_the_newest_with_trainers_state(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert newest_checkpoint(run) is None
    for step, state in ((2, True), (9, True), (10, True), (11, False)):
        folder = run.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if state:
            (folder / "trainer_state.json").write_text("{}")
    assert newest_checkpoint(run) == run.checkpoints / "checkpoint-10"


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ("Traceback\nValueError: no [red] é\n\n", "ValueError: no [red] é"),
        ("", "no error was kept"),
        (" \n", "no error"),
    ],
)
def test_a_failed_cell_says_the_last_line_of_its_error(tmp_path: Path, content: str, note: str) -> None:
    (tmp_path / "error.txt").write_text(content, encoding="utf-8")
    summary = at_a_glance(tmp_path)
    assert summary.state == FAILED
    assert summary.note.startswith(note)


def test_a_finished_run_beside_an_old_error_is_finished(tmp_path: Path) -> None:
    run = Path(shutil.copytree(KEPT / "lor2c" / "finished", tmp_path / "run"))
    (run / "error.txt").write_text("of an earlier try")
    assert at_a_glance(run).state == FINISHED


@pytest.mark.parametrize(
    ("file", "content", "note"),
    [
        ("config.yaml", "model: [", "config.yaml is not valid YAML"),
        ("config.yaml", "model: {}\nmethod: {}\n", "no file of a run looks like that (KeyError('name'))"),
        ("config.yaml", "model: [a]\nmethod: [b]\n", "no file of a run looks like that (TypeError"),
        ("config.yaml", "model: {name: m}\nmethod: {name: a}\ndata: [1]\n", "looks like that (AttributeError"),
        ("metrics.json", "{", "metrics.json is damaged, it is no JSON"),
        ("metrics.json", "{}", "metrics.json is damaged, headline is missing"),
    ],
)
def test_what_is_wrong_with_a_damaged_run_stands_in_its_note(
    tmp_path: Path, file: str, content: str, note: str
) -> None:
    run = Path(shutil.copytree(KEPT / "lor2c" / "finished", tmp_path / "run"))
    (run / file).write_text(content)
    summary = at_a_glance(run)
    assert (summary.state, summary.name) == (DAMAGED, "run")
    assert note in summary.note


@pytest.mark.parametrize(
    ("file", "content", "note"),
    [
        (
            "trainer_state.json",
            "[]",
            "trainer_state.json is damaged, it holds a list and no object: delete it, or copy",
        ),
        ("trainer_state.json", "{}", "KeyError('log_history')"),
        ("rankwise_run.json", "{}", "KeyError('seconds')"),
        ("allocation.json", "\x00", "allocation.json is damaged, it is no JSON"),
    ],
)
def test_a_damaged_checkpoint_makes_an_unfinished_run_damaged(
    tmp_path: Path, file: str, content: str, note: str
) -> None:
    run = Path(shutil.copytree(KEPT / "lor2c" / "interrupted", tmp_path / "run"))
    (run / "checkpoints" / "checkpoint-4" / file).write_text(content)
    summary = at_a_glance(run)
    assert summary.state == DAMAGED
    assert note in summary.note
