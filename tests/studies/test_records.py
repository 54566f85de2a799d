"""A study's file: whole after each run, resumed, and never mixed with other settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from studies.where_it_pays.records import Records, options_of, recorded

ROOT = Path(__file__).parents[2]


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


def test_what_a_page_rests_on_can_be_run_again() -> None:
    """Every run of both results says its arm, rate, seed, budget and, by its variant's name, what the plan was told."""
    from studies.where_it_pays import classify, curve
    from studies.where_it_pays.arms import ARMS

    for module in (curve, classify):
        file = ROOT / "results" / "where-it-pays" / f"{module.__name__.rsplit('.', 1)[-1]}.json"
        keys = list(recorded(file, module.KEY))
        assert len({tuple(key.values()) for key in keys}) == len(keys) > 200
        for key in keys:
            assert key["arm"] in ARMS
            assert set(options_of(key["variant"])) <= {"breadth", "damping"}


def test_a_variant_says_its_option() -> None:
    assert options_of("") == {}
    assert options_of("damping=10") == {"damping": 10}
    assert options_of("cross_validate=true") == {"cross_validate": True}
    with pytest.raises(ValueError, match="'wider' does not say an option"):
        options_of("wider")
