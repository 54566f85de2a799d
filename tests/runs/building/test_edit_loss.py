"""The loss around an edit: a mean over rows, or over tokens, of the dev split's first rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.models import VOCABULARY, tiny_llama
from tests.runs.conftest import Make
from torch import nn

from rankwise.runs.building import edit_loss as module
from rankwise.runs.building.edit_loss import dev_loss, edit_loss
from rankwise.runs.building.job import build
from rankwise.runs.dryrun import tiny_tokenizer
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.recipe import Recipe, Training
from rankwise.tasks import IGNORED, TASKS, TaskData

STEPS = 8


def edited(make: Make, **method: Any) -> Recipe:
    """Three blocks, eight steps: a merge and an injection, both after the second step unless told otherwise."""
    shape = {"max_steps": STEPS, "every": 2}
    return make("lor2c", "mrpc", method={"injections": 1, **method}, training=shape, select="last")


def test_the_loss_around_an_edit_is_the_one_a_plain_pass_finds(make: Make, tmp_path: Path) -> None:
    recipe = edited(make, merges=1, injections=0)
    with quiet():
        job = build(recipe)
    assert job.data.dev is not None
    rows = job.data.dev.select(range(3))
    batches = [job.data.collator([dict(row)]) for row in rows]
    with torch.no_grad():
        single = [float(job.data.loss(job.model.eval(), batch)) for batch in batches]
    data = dataclasses.replace(job.data, dev=rows)
    training = recipe.training.model_copy(update={"eval_batch_size": 2})
    assert dev_loss(data, training, job.model) == pytest.approx(sum(single) / 3, rel=1e-5)
    assert edit_loss(dataclasses.replace(job.data, dev=None), training) is None


PROMPTS = [(5, 2), (3, 3), (6, 1), (4, 4)]  # of each row its tokens, and how many of them are its prompt


def causal_data() -> TaskData:
    """Rows of unlike lengths whose prompts are not learned; nothing of the second one is."""
    rows = []
    for number, (length, prompt) in enumerate(PROMPTS):
        ids = [4 + (7 * number + 3 * place) % (VOCABULARY - 4) for place in range(length)]
        rows.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:], "attention_mask": [1] * length})
    dev = Dataset.from_list(rows)
    return TaskData(TASKS["instruction"], tiny_tokenizer(), dev, dev, None, None, {}, {}, {})


@torch.no_grad()
def mean_by_hand(model: nn.Module, data: TaskData, rows: int) -> float:
    """The mean of -log p over the learned tokens, one row at a time in float64."""
    total, count = 0.0, 0
    assert data.dev is not None
    for row in data.dev.select(range(rows)):
        logs = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
        for place, label in enumerate(row["labels"][1:]):
            if label != IGNORED:
                total -= float(logs[place, label])
                count += 1
    return total / count


@pytest.mark.parametrize("size", [1, 2, 4])
def test_of_a_causal_model_it_is_a_mean_over_tokens_however_rows_are_batched(size: int) -> None:
    model, data = tiny_llama(), causal_data()
    measure = edit_loss(data, Training(eval_batch_size=size))
    assert measure is not None
    assert measure(model) == pytest.approx(mean_by_hand(model, data, 4), rel=1e-5)


def test_only_the_first_rows_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.ROWS == 512
    model, data = tiny_llama(), causal_data()
    monkeypatch.setattr(module, "ROWS", 3)
    expected = mean_by_hand(model, data, 3)
    assert expected != pytest.approx(mean_by_hand(model, data, 1), rel=1e-3)
    assert dev_loss(data, Training(eval_batch_size=2), model) == pytest.approx(expected, rel=1e-5)


def test_measuring_leaves_no_gradient_and_the_mode_of_the_model() -> None:
    model, data = tiny_llama().train(), causal_data()
    dev_loss(data, Training(), model)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
