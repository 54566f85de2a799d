"""What a search decided reaches Trainer's loggers: numbers while it trains, a picture at the end."""

from __future__ import annotations

import logging
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from peft import get_peft_model
from tests.models import tiny_bert
from tests.search.test_callback import searching, trainer
from transformers import TrainerCallback

import rankwise
from rankwise.rules.records import edits, searches

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


class Heard(TrainerCallback):
    """A logger of the user's own, as W&B's and MLflow's callbacks are."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append({**logs, "step": state.global_step})


def events(folder: Path) -> Any:
    """Read the only event file of a TensorBoard folder."""
    (file,) = folder.rglob("events.out.tfevents.*")
    read = event_accumulator.EventAccumulator(str(file), {"scalars": 0, "images": 0})
    return read.Reload()


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    return tmp_path / "board"


@pytest.mark.parametrize("own", [False, True], ids=["automatic", "given"])
def test_a_search_reaches_tensorboard_and_other_loggers(board: Path, tmp_path: Path, own: bool) -> None:
    model = searching(search_every=2, shortcuts=["res1"])
    heard = Heard()
    mine = [rankwise.AllocationCallback()] if own else []
    trainer(model, tmp_path / "out", *mine, heard, max_steps=8, logging_steps=1, report_to=["tensorboard"]).train()
    history = searches(rankwise.history(model))
    read = events(board)
    own_tags = [name for name in read.Tags()["scalars"] if "rankwise" in name]
    seen = {name.removeprefix("train/rankwise/"): read.Scalars(name) for name in own_tags}
    assert set(seen) == {
        "enabled", "contributing", "on/linear", "on/res1", "searches", "edits", "search_seconds", "overlap",
    }  # fmt: skip
    for step, linear in ((event.step, event.value) for event in seen["on/linear"]):
        record = [each for each in history if each.step < step or each.step == step == 0][-1]
        after = [each for each in history if each.step <= step][-1]
        assert linear in {sum("res1" not in name for name in each.chosen) for each in (record, after)}
    expected = [len(set(a.chosen) & set(b.chosen)) / len(a.chosen) for a, b in pairwise(history)]
    assert seen["overlap"][-1].value == pytest.approx(expected[-1])
    assert {round(event.value, 5) for event in seen["overlap"]} <= {round(value, 5) for value in expected}
    assert seen["search_seconds"][-1].value == pytest.approx(sum(each.seconds + each.tap_seconds for each in history))
    assert seen["searches"][-1].value == len(history)
    told = [logs for logs in heard.logs if "rankwise/on/res1" in logs]
    assert [logs["step"] for logs in told][:8] == list(range(1, 9))
    on = [name for name, path in rankwise.named_paths(model).items() if path.enabled]
    assert told[7]["rankwise/on/res1"] == sum("res1" in name for name in on)


def test_the_heat_map_is_an_image_at_the_end(board: Path, tmp_path: Path) -> None:
    model = searching(search_every=2)
    trainer(model, tmp_path / "out", max_steps=4, report_to=["tensorboard"]).train()
    read = events(board)
    assert read.Tags()["images"] == ["rankwise/enabled paths"]
    (image,) = read.Images("rankwise/enabled paths")
    assert image.step == 4
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert (image.width, image.height) > (300, 150)


def test_edits_are_logged_and_drawn(board: Path, tmp_path: Path) -> None:
    config = rankwise.Lor2cConfig(task_type="SEQ_CLS", r=2, merges=1, edit_unit="steps")
    model = get_peft_model(tiny_bert(3), config)
    trainer(model, tmp_path / "out", max_steps=8, logging_steps=1, report_to=["tensorboard"]).train()
    assert len(edits(rankwise.history(model))) == 1
    read = events(board)
    assert [event.value for event in read.Scalars("train/rankwise/on/layer")][-1] == 2
    assert [event.value for event in read.Scalars("train/rankwise/edits")][-1] == 1
    assert read.Tags()["images"] == ["rankwise/structure"]


def test_without_matplotlib_the_numbers_come_and_the_picture_is_missed_aloud(
    board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.WARNING, "rankwise"):
        trainer(searching(search_every=2), tmp_path / "out", max_steps=4, report_to=["tensorboard"]).train()
    assert "no logger gets a picture of what was on: a picture needs matplotlib" in caplog.text
    assert "train/rankwise/overlap" in events(board).Tags()["scalars"]


def test_wandb_gets_the_numbers_and_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="W&B is installed for the loops' step only")
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_DIR", str(tmp_path)), ("WANDB_SILENT", "true")):
        monkeypatch.setenv(name, value)
    trainer(searching(search_every=2), tmp_path / "out", max_steps=4, logging_steps=1, report_to=["wandb"]).train()
    summary = dict(wandb.run.summary)
    folder = Path(wandb.run.dir)
    wandb.finish()
    assert summary["train/rankwise/searches"] == 2
    image = summary["rankwise/enabled paths"]
    assert image["_type"] == "image-file"
    assert (folder / image["path"]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("ignore")  # of MLflow's own use of SQLAlchemy
def test_mlflow_gets_the_numbers_and_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is installed for the loops' step only")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    trainer(searching(search_every=2), tmp_path / "out", max_steps=4, logging_steps=1, report_to=["mlflow"]).train()
    (run,) = mlflow.search_runs(output_format="list")
    assert run.data.metrics["rankwise/searches"] == 2
    (picture,) = Path(run.info.artifact_uri.removeprefix("file://")).rglob("*.png")
    assert picture.name == "enabled paths.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
