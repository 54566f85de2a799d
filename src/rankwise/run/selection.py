"""Which evaluations the dev-selected checkpoint is chosen from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import rankwise


def last_edit(history: Sequence[Mapping[str, Any]]) -> int:
    """Return the optimizer step after which the model was edited last, 0 if it never was."""
    return max((record["step"] for record in history if record.get("edits")), default=0)


class AfterEdits(TrainerCallback):
    """Lets the best checkpoint be one of the model as it is in the end: with every edit made, and trained since."""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget a best checkpoint that an edit has left behind; one written right after an edit is not trained yet."""
        best = state.best_global_step
        if best is not None and best <= last_edit(rankwise.history(kwargs["model"])):
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None
