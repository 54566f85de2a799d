"""Which evaluations the selected checkpoint is chosen from: those of the model as it is in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.report.histories import record
from tests.runs.conftest import Make
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from rankwise.rules.edits import Edit, Merge
from rankwise.rules.records import EditRecord, Record
from rankwise.runs.building.best_checkpoint import AfterChanges, after_edits, after_pruning, last_edit
from rankwise.runs.building.job import build
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.recipe import Recipe

STEPS = 8


def edited(make: Make, **method: Any) -> Recipe:
    """Three blocks, eight steps: a merge and an injection, both after the second step unless told otherwise."""
    shape = {"max_steps": STEPS, "every": 2}
    return make("lor2c", "mrpc", method={"injections": 1, **method}, training=shape, select="last")


def test_a_best_checkpoint_before_an_edit_is_forgotten(make: Make, tmp_path: Path) -> None:
    with quiet():
        model = build(edited(make)).model
    args, control = TrainingArguments(output_dir=str(tmp_path), report_to=[]), TrainerControl()
    state = TrainerState(best_global_step=4, best_metric=0.5, best_model_checkpoint="checkpoint-4")
    after_edits().on_step_begin(args, state, control, model=model)
    assert state.best_global_step == 4
    paths = model.get_base_model().rankwise_paths["default"]
    paths.history.append(EditRecord(step=4, edits=[], before=[]))  # one that was skipped
    after_edits().on_step_begin(args, state, control, model=model)
    assert state.best_metric == 0.5
    paths.history.append(EditRecord(step=4, edits=[Merge("layers.0.layer", "layers.1.layer")], before=[]))
    assert last_edit(paths.history) == 4
    after_edits().on_step_begin(args, state, control, model=model)
    best: list[object] = [state.best_global_step, state.best_metric, state.best_model_checkpoint]
    assert best == [None, None, None]


def edit_at(step: int, *made: Edit) -> EditRecord:
    return EditRecord(step=step, edits=list(made), before=[])


MADE = Merge("layers.0.layer", "layers.1.layer")


@pytest.mark.parametrize(
    ("history", "step"),
    [
        ([], 0),
        ([edit_at(4)], 0),  # skipped
        ([edit_at(4, MADE), edit_at(9)], 4),
        ([edit_at(9, MADE), edit_at(4, MADE)], 9),
        ([record(["layers.0.query"], ["layers.0.query"], step=30), edit_at(4, MADE)], 4),  # a search is no edit
    ],
)
def test_the_last_edit_is_the_last_that_was_made(history: list[Record], step: int) -> None:
    assert last_edit(history) == step


def after(callback: AfterChanges, folder: Path, **fields: Any) -> int | None:
    """The best step once a step has begun."""
    args = TrainingArguments(output_dir=str(folder), report_to=[])
    state = TrainerState(best_metric=0.5, best_model_checkpoint="checkpoint", **fields)
    callback.on_step_begin(args, state, TrainerControl(), model=nn.Linear(1, 1))
    kept = (state.best_metric, state.best_model_checkpoint)
    assert kept == ((0.5, "checkpoint") if state.best_global_step is not None else (None, None))
    return state.best_global_step


@pytest.mark.parametrize(("best", "kept"), [(3, None), (4, None), (5, 5)])
def test_only_what_was_trained_after_a_change_counts(tmp_path: Path, best: int, kept: int | None) -> None:
    assert after(AfterChanges(lambda state, model: 4), tmp_path, best_global_step=best) == kept


def test_without_a_best_checkpoint_nothing_is_asked(tmp_path: Path) -> None:
    def never(state: TrainerState, model: nn.Module) -> int:
        raise AssertionError("there is nothing to forget")

    args = TrainingArguments(output_dir=str(tmp_path), report_to=[])
    state = TrainerState()
    AfterChanges(never).on_step_begin(args, state, TrainerControl(), model=nn.Linear(1, 1))
    assert state.best_global_step is None


@pytest.mark.parametrize(("best", "kept"), [(70, None), (80, None), (81, 81)])
def test_pruning_ends_so_many_steps_before_the_end(tmp_path: Path, best: int, kept: int | None) -> None:
    assert after(after_pruning(20), tmp_path, best_global_step=best, max_steps=100) == kept
