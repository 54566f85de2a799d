"""Runs in the terminal: found, sorted, narrowed to the width there is."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from rankwise.runs.results.found import Summary
from rankwise.runs.results.listing import list_runs, runs_table, to_json

KEPT = Path(__file__).resolve().parents[2] / "data" / "version-0.1"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    shutil.copytree(KEPT / "heterolora" / "finished", tmp_path / "cells" / "b")
    shutil.copytree(KEPT / "lor2c" / "finished", tmp_path / "cells" / "a")
    shutil.copytree(KEPT / "lor2c" / "interrupted", tmp_path / "stopped")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text("model: [")
    return tmp_path


def shown(runs: list[Summary], width: int) -> str:
    text = io.StringIO()
    Console(file=text, width=width).print(runs_table(runs, width=width))
    return text.getvalue()


def test_runs_are_found_at_any_depth_and_sorted(study: Path) -> None:
    assert [run.name for run in list_runs(study)] == ["broken", "cells/a", "cells/b", "stopped"]
    by_loss = list_runs(study, sort="loss")
    losses = [run.figures["last"]["validation"]["loss"] for run in by_loss[:2]]
    assert losses == sorted(losses)
    assert {run.name for run in by_loss[2:]} == {"broken", "stopped"}, "those without the figure come last"
    down = list_runs(study, sort="loss", descending=True)
    assert [run.name for run in down[:2]] == [run.name for run in by_loss[1::-1]]
    assert [run.name for run in down[2:]] == [run.name for run in by_loss[2:]]


def test_the_table_has_the_figures_of_metrics_json(study: Path) -> None:
    text = shown(list_runs(study), 160)
    for name in ("a", "b"):
        figures = json.loads((study / "cells" / name / "metrics.json").read_text())
        line = next(line for line in text.splitlines() if f"cells/{name}" in line)
        assert f"{figures['metrics']['last']['validation']['loss']:.4f}" in line
        assert f"{figures['parameters']['trainable']:,}" in line
        assert "finished" in line
    assert "at step 4 of 6" in text
    assert "the same in all: " in text
    assert "broken: " in text


def test_a_narrow_terminal_loses_columns_and_says_which(study: Path) -> None:
    text = shown(list_runs(study), 60)
    assert all(len(line) <= 60 for line in text.splitlines())
    assert "cells/a" in text
    assert "0.6853" in text
    assert "no room for " in text


def test_another_split_and_json(study: Path) -> None:
    runs = list_runs(study, sort="accuracy", split="dev")
    assert runs[0].figures["last"]["dev"]["accuracy"] == 0.5
    found = {each["name"]: each for each in json.loads(to_json(runs))}
    assert found["stopped"]["step"] == 4
    assert found["cells/a"]["figures"]["last"]["validation"]["loss"] > 0
    assert found["broken"]["state"] == "damaged"


def test_mistakes_name_what_there_is(study: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sort='los' is not one of .*did you mean 'loss'"):
        list_runs(study, sort="los")
    with pytest.raises(ValueError, match="split='train' is not one of 'dev', 'validation'"):
        list_runs(study, split="train")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        list_runs(tmp_path / "gone")
