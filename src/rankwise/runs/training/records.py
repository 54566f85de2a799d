"""What a run writes while it trains: the searches as they happen, the seconds it took so far."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import rankwise
from rankwise.files import write_text_atomic
from rankwise.rules.records import Record, to_lines
from rankwise.runs.checkpoints import complete, rotate
from rankwise.runs.folder import RunFolder


class Saved(TrainerCallback):
    """Makes each checkpoint complete, the last of the callbacks to write into it; then deletes those that are too many.

    Seconds of training are counted over interruptions, from before the Trainer is made: a search for ranks is then.

    Args:
        before: Seconds of training that led to the checkpoint continued from.
        keep: How many checkpoints stay.
        data: The digest of the rows.
    """

    def __init__(self, before: float = 0.0, keep: int | None = None, data: str | None = None) -> None:
        self.before = before
        self.keep = keep
        self.data = data
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since this was made, and those of the runs this one continues."""
        return self.before + time.perf_counter() - self.started

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the manifest when every process has written its part."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir))
            complete(folder / f"checkpoint-{state.global_step}", seconds=self.seconds, data=self.data)
            rotate(folder, newest=state.global_step, best=state.best_global_step, keep=self.keep)


class Settle(TrainerCallback):
    """Lets go of the run that this one replaces, after the first step: what is wrong with a recipe shows by then."""

    def __init__(self, folder: RunFolder) -> None:
        """Settle ``folder``."""
        self.folder = folder
        self.done = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Settle."""
        if not self.done:
            self.folder.settle()
            self.done = True


class HistoryFile(TrainerCallback):
    """Rewrites the run's history file after each search."""

    def __init__(self, path: Path) -> None:
        """Write to ``path``."""
        self.path = path
        self.written = -1

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write when there is something new."""
        if state.is_world_process_zero:
            self.write(rankwise.history(kwargs["model"]))

    def write(self, records: Sequence[Record]) -> None:
        """Write one search per line, unless they are all there."""
        if len(records) != self.written:
            write_text_atomic(self.path, to_lines(records))
            self.written = len(records)
