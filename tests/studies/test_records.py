"""A study's file: whole after each run, resumed, and never mixed with other settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from studies.where_it_pays.records import Records


def test_runs_are_there_after_each_and_found_again(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "runs.json"
    records = Records(file, {"steps": 3})
    records.add({"arm": "layer", "seed": 0, "loss": 1.5})
    again = Records(file, {"steps": 3})
    found = again.find({"arm": "layer", "seed": 0})
    assert found is not None
    assert found["loss"] == 1.5
    assert "python -m studies.where_it_pays." in found["command"]
    assert again.find({"arm": "layer", "seed": 1}) is None
    again.add({"arm": "layer", "seed": 1, "loss": 2.5})
    assert [run["seed"] for run in json.loads(file.read_text())["runs"]] == [0, 1]
    assert [path.name for path in file.parent.iterdir()] == ["runs.json"]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "runs.json"
    Records(file, {"steps": 3}).add({"arm": "layer"})
    with pytest.raises(ValueError, match="other settings"):
        Records(file, {"steps": 4})
