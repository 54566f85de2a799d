"""Progress of a Trainer on a rich console, and the silence around it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rankwise.passes import Watcher, watched_by

COLUMNS = (
    TextColumn("[bold]{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)


class RichProgress(TrainerCallback):
    """One bar for the optimizer steps, with the last loss and the last dev figure beside it."""

    def __init__(self, console: Console, headline: str) -> None:
        """Print to ``console`` and show ``eval_<headline>``."""
        self.headline = headline
        self.figures: dict[str, str] = {}
        self.bar = Progress(*COLUMNS, TextColumn("{task.fields[figures]}"), console=console)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the bar."""
        if state.is_world_process_zero:
            self.task = self.bar.add_task("training", total=state.max_steps, completed=state.global_step, figures="")
            self.bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar."""
        if state.is_world_process_zero:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take over the loss and the headline metric."""
        logs = kwargs["logs"]
        for key, label in (("loss", "loss"), (f"eval_{self.headline}", f"dev {self.headline}")):
            if key in logs:
                self.figures[label] = f"{label} {float(logs[key]):.4f}"
        if state.is_world_process_zero and self.bar.live.is_started:
            self.bar.update(self.task, figures=" ".join(self.figures.values()))

    def close(self) -> None:
        """Take the bar off the screen's live part; also after an error."""
        self.bar.stop()


def follow(bar: Progress) -> Watcher:
    """Return what shows the passes of a search as a bar among those of ``bar``, for as long as they last."""
    shown: list[TaskID] = []

    def watch(what: str, done: int, total: int) -> None:
        if not shown:
            bar.start()
            shown.append(bar.add_task(what, total=total or None, figures=""))
        bar.update(shown[0], completed=done)
        if done and done == total:
            bar.remove_task(shown.pop())

    return watch


@contextmanager
def passes_shown(console: Console) -> Iterator[None]:
    """Show how far a search inside is."""
    bar = Progress(*COLUMNS, console=console, transient=True, disable=not console.is_terminal)
    try:
        with watched_by(follow(bar)):
            yield
    finally:
        if bar.live.is_started:  # else it would print an empty line
            bar.stop()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the loaders' and the Trainer's notices off the screen, and put the verbosity back afterwards."""
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    quantiser = logging.getLogger("bitsandbytes")  # at every 8-bit product it says that it casts
    level = quantiser.level
    quantiser.setLevel(logging.ERROR)
    transformers.logging.set_verbosity(logging.ERROR)
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # Written for authors of loops, not of recipes: no memory to pin on a CPU, PEFT's use of an old name.
            warnings.filterwarnings("ignore", message=".*pin_memory.*")
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        quantiser.setLevel(level)
        if bars:
            transformers.logging.enable_progress_bar()
