"""From run folders to pictures: found where they lie, named apart, and what can't be drawn is said."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.report.histories import mixed_history, record
from tests.runs.conftest import Make

from rankwise.report.history import History
from rankwise.rules.records import HISTORY_FILE, to_lines
from rankwise.runs.folder import RunFolder
from rankwise.runs.recipes.recipe import parse_recipe
from rankwise.runs.results.pictures import write_report
from rankwise.runs.results.sources import read_source
from rankwise.runs.training.train import train

DYNAMIC = {"proxy": "grad_norm", "mode": "dynamic", "budget": 0.25, "seed": 0}


def write_history(folder: Path, history: History) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / HISTORY_FILE).write_text(to_lines(history), encoding="utf-8")
    return folder


def adapter(folder: Path, history: History | None = None, **settings: Any) -> Path:
    """An adapter folder as ``save_pretrained`` leaves it, as far as a report reads it."""
    write_history(folder, history if history is not None else mixed_history(2, 3))
    (folder / "adapter_config.json").write_text(json.dumps({**DYNAMIC, **settings}), encoding="utf-8")
    return folder


def run(folder: Path, method: str = "heterolora", **options: Any) -> RunFolder:
    """A run that was started."""
    recipe = {"model": {"name": "m"}, "data": {"task": "mrpc"}, "method": {"name": method, **options}}
    RunFolder(folder).start(parse_recipe(recipe))
    return RunFolder(folder)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def words(picture: Path) -> str:
    """The text of an SVG, which matplotlib keeps in comments."""
    lines = picture.read_text(encoding="utf-8").splitlines()
    return " ".join(line.strip("<!- >") for line in lines if "<!--" in line)


def test_a_run_gets_four_pictures(tmp_path: Path) -> None:
    report = write_report([adapter(tmp_path / "mine")], tmp_path / "out")
    assert [path.name for path in report.written] == ["frequency.png", "share.png", "scores.png", "overlap.png"]
    assert names(tmp_path / "out") == sorted(path.name for path in report.written)
    assert report.left_out == []


def test_a_trained_run_is_drawn_from_its_folder_its_adapter_and_its_file(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "trained"
    train(make("heterolora", select="last"), folder)
    places = [folder, folder / "adapter", folder / HISTORY_FILE]
    found = [read_source(place) for place in places]
    assert [each.name for each in found] == ["trained"] * 3
    assert found[0].history == found[1].history == found[2].history
    assert found[0].settings == found[1].settings == found[2].settings
    assert found[0].told(["proxy", "mode", "budget"]) == "grad_norm, dynamic, budget 0.5"
    for place in places:
        report = write_report([place], tmp_path / "out", picture_format="svg")
        assert len(report.written) == 4
        assert "trained: grad_norm, dynamic" in words(tmp_path / "out" / "frequency.svg")


def test_several_runs_stand_in_one_heat_map_and_have_their_own_pictures_over_time(tmp_path: Path) -> None:
    runs = [adapter(tmp_path / name, allocation=name) for name in ("combined", "separated")]
    report = write_report(runs, tmp_path / "out", picture_format="svg")
    assert {path.name for path in report.written} == {
        "frequency.svg",
        *(f"{what}-{name}.svg" for what in ("share", "scores", "overlap") for name in ("combined", "separated")),
    }
    together = words(tmp_path / "out" / "frequency.svg")
    assert "grad_norm, dynamic" in together
    assert together.count("combined") == together.count("separated") == 1
    assert "separated: grad_norm, dynamic, separated" in words(tmp_path / "out" / "share-separated.svg")


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        (({"allocation": "combined"}, {"allocation": "separated"}), ["combined", "separated"]),
        (({"proxy": "snip", "seed": 3}, {"proxy": "constant", "seed": 3}), ["snip", "constant"]),
        (({"proxy": "snip"}, {"proxy": "snip", "seed": 13}), ["seed 0", "seed 13"]),
        (({}, {}), ["run-0", "run-1"]),
        (({"r": 8}, {}), ["run-0", "run-1"]),
        (({"budget": 0.5}, {"budget": 4096, "mode": "static"}), ["dynamic, budget 0.5", "static, budget 4096"]),
    ],
)
def test_runs_are_told_apart_by_what_differs(
    tmp_path: Path, settings: tuple[dict[str, Any], ...], labels: list[str]
) -> None:
    once = mixed_history(2, 1)
    runs = [adapter(tmp_path / f"run-{number}", once, **each) for number, each in enumerate(settings)]
    write_report(runs, tmp_path / "out", picture_format="svg")
    shown = words(tmp_path / "out" / "frequency.svg")
    assert [label for label in labels if f" {label} " not in shown] == []


@pytest.mark.slow
def test_runs_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    runs = [adapter(tmp_path / place / "same") for place in ("a", "b")]
    report = write_report(runs, tmp_path / "out")
    assert len({path.name for path in report.written}) == len(report.written) == 7
    assert "share-same-2.png" in names(tmp_path / "out")


def test_a_search_before_training_has_nothing_over_time_and_says_so(tmp_path: Path) -> None:
    report = write_report([adapter(tmp_path / "static", mixed_history(2, 1), mode="static")], tmp_path / "out")
    assert [path.name for path in report.written] == ["frequency.png"]
    (reason,) = report.left_out
    assert "searched once" in reason
    assert "share, scores, overlap" in reason


def test_scores_that_all_were_infinite_leave_out_their_picture_only(tmp_path: Path) -> None:
    name = "layers.0.query"
    history = [record([name], [name], step=step, scores={name: None}) for step in range(3)]
    report = write_report([adapter(tmp_path / "run", history)], tmp_path / "out")
    assert [path.stem for path in report.written] == ["frequency", "share", "overlap"]
    assert "no scores: no path has a finite grad_norm score" in report.left_out[0]


@pytest.mark.slow
def test_an_earlier_report_is_replaced(tmp_path: Path) -> None:
    for proxy in ("snip", "constant"):
        write_report([adapter(tmp_path / "run", proxy=proxy)], tmp_path / "out", picture_format="svg")
    assert len(names(tmp_path / "out")) == 4
    assert "constant, dynamic" in words(tmp_path / "out" / "overlap.svg")


def test_nothing_is_written_where_one_run_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_report([adapter(tmp_path / "run"), tmp_path / "gone"], tmp_path / "out")
    with pytest.raises(ValueError, match=r"format='jpg' is not one of 'png', 'svg'"):
        write_report([tmp_path / "run"], tmp_path / "out", picture_format="jpg")
    with pytest.raises(ValueError, match="is a file: give a folder"):
        write_report([tmp_path / "run"], tmp_path / "run" / HISTORY_FILE)
    assert names(tmp_path) == ["run"]


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        write_report([adapter(tmp_path / "run")], tmp_path / "out")
