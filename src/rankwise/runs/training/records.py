"""What a run writes while it trains: the searches as they happen, the seconds it took so far."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import rankwise
from rankwise.files import write_json_atomic, write_text_atomic
from rankwise.rules.records import Record, to_lines
from rankwise.runs.folder import CLOCK_FILE, RunFolder


class Clock(TrainerCallback):
    """Seconds of training, over interruptions; the last file of a checkpoint, so it marks it as complete."""

    def __init__(self, before: float = 0.0) -> None:
        """Continue from ``before`` seconds."""
        self.before = before
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since training began, and those of the runs this one continues."""
        return self.before + time.perf_counter() - self.started

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start."""
        self.started = time.perf_counter()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the seconds so far beside the checkpoint."""
        if state.is_world_process_zero:
            checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            write_json_atomic(checkpoint / CLOCK_FILE, {"seconds": self.seconds})


def seconds_before(checkpoint: Path | None) -> float:
    """Return the training seconds that led to a checkpoint."""
    if checkpoint is None:
        return 0.0
    return float(json.loads((checkpoint / CLOCK_FILE).read_text(encoding="utf-8"))["seconds"])


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
