from __future__ import annotations

from pathlib import Path

from transformers import TrainerControl, TrainerState, TrainingArguments

from rankwise.report import read_history
from rankwise.rules.records import SearchRecord
from rankwise.runs.checkpoints import seconds_before
from rankwise.runs.training.records import HistoryFile, Saved


def test_seconds_go_on_after_an_interruption(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    state, control = TrainerState(global_step=4), TrainerControl()
    (tmp_path / "checkpoint-4").mkdir()
    saved = Saved(before=100.0)
    saved.on_train_begin(arguments, state, control)
    saved.on_save(arguments, state, control)
    assert 100.0 <= seconds_before(tmp_path / "checkpoint-4") < 101.0
    assert seconds_before(None) == 0.0


def test_what_goes_before_the_first_step_counts(tmp_path: Path) -> None:
    """A search for ranks is made when the Trainer is, and its seconds are a share of the training's."""
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    saved = Saved()
    saved.started -= 50
    saved.on_train_begin(arguments, TrainerState(), TrainerControl())
    assert saved.seconds >= 50


def test_history_is_rewritten_only_when_it_grew(tmp_path: Path) -> None:
    file = HistoryFile(tmp_path / "history.jsonl")
    first, second = (SearchRecord(step=step, search=number, proxy="snip") for number, step in enumerate((0, 5)))
    file.write([first])
    file.path.unlink()
    file.write([first])
    assert not file.path.exists()
    file.write([first, second])
    assert read_history(file.path) == [first, second]
