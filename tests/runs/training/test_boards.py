"""The TensorBoard folder of a run has what was decided, although the run closes the board itself."""

from __future__ import annotations

from pathlib import Path

from tests.runs.conftest import Make
from tests.search.test_logged import events

from rankwise.runs.training.train import train


def test_a_run_has_the_choices_and_the_heat_map_on_its_board(make: Make, tmp_path: Path) -> None:
    shape = {"report_to": ["tensorboard"], "logging_steps": 1}
    train(make("heterolora", training=shape), tmp_path / "run")
    read = events(tmp_path / "run" / "tensorboard")
    assert {"train/rankwise/on/linear", "train/rankwise/overlap"} <= set(read.Tags()["scalars"])
    assert read.Tags()["images"] == ["rankwise/enabled paths"]
