"""Which evaluations the dev-selected checkpoint is chosen from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import rankwise
from rankwise.rules.records import Record, edits


def last_edit(history: Iterable[Record]) -> int:
    """Return the optimizer step after which the model was edited last, 0 if it never was."""
    return max((record.step for record in edits(history) if not record.skipped), default=0)


class AfterChanges(TrainerCallback):
    """Lets the best checkpoint be one of the model as it is in the end: with every change made, and trained since.

    Args:
        last_change: Returns the optimizer step after which a method changed the model last, or will.
    """

    def __init__(self, last_change: Callable[[TrainerState, nn.Module], int]) -> None:
        self.last_change = last_change

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget a best checkpoint that a change has left behind; one right after a change is not trained yet."""
        best = state.best_global_step
        if best is not None and best <= self.last_change(state, kwargs["model"]):
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None


def after_edits() -> AfterChanges:
    """Return the callback for LoR2C, whose structure is edited."""
    return AfterChanges(lambda state, model: last_edit(rankwise.history(model)))


def after_pruning(final_steps: int) -> AfterChanges:
    """Return the callback for AdaLoRA, which takes ranks away until ``final_steps`` before the end."""
    return AfterChanges(lambda state, model: state.max_steps - final_steps)
