"""``rankwise runs`` and ``rankwise report``: what they print, write and refuse."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from tests.commands import call, small_recipe

from rankwise.runs.results.pictures import OVER_TIME
from rankwise_exits import USER_ERROR

KEPT = Path(__file__).resolve().parent / "data" / "version-0.1"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return small_recipe(tmp_path)


@pytest.mark.slow
def test_report_names_its_pictures_and_what_it_left_out(recipe: Path, tmp_path: Path) -> None:
    for name, options in {"moving": ["method.search_every=1"], "fixed": ["method.mode=static"]}.items():
        options = [word for option in options for word in ("--set", option)]
        assert call("train", recipe, "--out", tmp_path / name, *options).exit_code == 0
    drawn = call("report", tmp_path / "moving", tmp_path / "fixed", "--out", tmp_path / "out", "--format", "svg")
    assert drawn.exit_code == 0, drawn.output
    said = [Path(line.rpartition(" ")[2]) for line in drawn.output.splitlines() if line.endswith(".svg")]
    assert sorted(said) == sorted((tmp_path / "out").iterdir())
    assert {path.name for path in said} == {f"{n}.svg" for n in ("frequency", *(f"{w}-moving" for w in OVER_TIME))}
    assert "fixed searched once" in drawn.output


def test_a_run_is_listed_and_reported_in_one_page(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("train", recipe, "--out", tmp_path / "all" / "mine").exit_code == 0
    listed = call("runs", "all")
    assert listed.exit_code == 0, listed.output
    assert "mine" in listed.output
    assert json.loads(call("runs", "all", "--json").output)[0]["state"] == "finished"
    assert call("report", "all").output == "report: report.html\n"
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    wrong = call("report", "all", "--out", "pictures")
    assert wrong.exit_code == USER_ERROR
    assert "must end in .html" in wrong.output


def test_a_missing_library_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = call("report", tmp_path, "--out", tmp_path / "out", "--format", "png")
    assert result.exit_code == USER_ERROR
    assert result.output == "Error: a picture needs matplotlib: pip install 'rankwise[report]'\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("runs", "gone"), "there is no folder gone: give a run folder, or a folder with runs in it"),
        (("report", "gone"), "there is no folder gone: give a run folder, or a folder with runs in it"),
        (("report", "gone", "--out", "OUT", "--format", "png"), "there is no gone: give a run folder"),
        (("report", "notes.txt", "--out", "OUT", "--format", "svg"), "line 1 is not a search"),
        (("report", "gone", "--out", "OUT", "--format", "jpg"), "format='jpg' is not one of 'html', 'png', 'svg'"),
        (("runs", ".", "--sort", "los"), "holds no run and no folder in it does"),
    ],
)
def test_mistakes_give_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine\n")
    result = call(*arguments)
    assert result.exit_code == USER_ERROR, result.output
    assert words in result.output
    assert result.output.startswith("Error: ")
    assert "Traceback" not in result.output
    assert not (tmp_path / "OUT").exists()


def test_runs_that_are_left_out_and_the_page_are_named_with_their_brackets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(KEPT / "lor2c" / "finished", tmp_path / "all" / "[red]")
    (tmp_path / "all" / "[b]").mkdir()
    (tmp_path / "all" / "[b]" / "config.yaml").write_text("model: [")
    said = call("report", "all", "--out", "[out].html")
    assert said.exit_code == 0, said.output
    left_out, page = said.output.splitlines()
    assert left_out.startswith("all/[b] is damaged, ")
    assert page == "report: [out].html"
    assert (tmp_path / "[out].html").is_file()
    listed = call("runs", "all").output
    assert "[red]" in listed
    assert "[b]: " in listed


def test_a_reason_longer_than_the_terminal_stays_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(KEPT / "lor2c" / "finished", tmp_path / "all" / "good")
    (tmp_path / "all" / ("b" * 150)).mkdir()
    (tmp_path / "all" / ("b" * 150) / "config.yaml").write_text("model: [")
    assert len(call("report", "all").output.splitlines()) == 2
