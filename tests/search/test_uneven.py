"""Two processes under Trainer with data that don't divide evenly make of an adapter what one process makes of it.

Two things that are not this library's differ between one process and two, for plain LoRA just so. accelerate fills the
last batch up with the first rows again, so two processes see a few rows twice. And Trainer takes the loss that a
classifier returns, a mean over its rows, for a share of the mean over all processes, which doubles loss and gradient
before they are clipped; a ``compute_loss_func`` that divides by ``num_items_in_batch`` is right for any number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.models import adapted, tiny_bert
from tests.processes import in_two_processes
from tests.search.test_callback import Examples
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import rankwise
from rankwise.scores.probe import model_loss

ROWS = 22  # of batches of four, so the last one has two


class Rows(Examples):
    """The first rows, and again from the start."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return super().__getitem__(index % ROWS)


def loss_of(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    total = nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def trained(share: slice | None, folder: str, ours: bool, rows: int) -> dict[str, Any]:
    """Train for a third more than an epoch; report what was chosen and every trained number."""
    base = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    targets = ["query", "value"]
    if ours:
        fields: dict[str, Any] = {"mode": "dynamic", "budget": 0.5, "search_every": 2, "score_batches": 2}
        model: Any = adapted(base, task_type="SEQ_CLS", target_modules=targets, **fields)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=targets))
    arguments = TrainingArguments(
        folder,
        max_steps=8,
        per_device_train_batch_size=4 if share is None else 2,
        learning_rate=1e-2,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    callbacks: Any = [rankwise.AllocationCallback(compute_loss=model_loss)] if ours else []
    run = Trainer(model, arguments, train_dataset=Rows(rows), callbacks=callbacks, compute_loss_func=loss_of)
    run.train()
    weights = [p.flatten().tolist() for p in model.parameters() if p.requires_grad]
    return {"chosen": [record["chosen"] for record in rankwise.history(model)] if ours else [], "weights": weights}


@pytest.mark.distributed
@pytest.mark.parametrize("ours", [False, True], ids=["plain", "ours"])
def test_an_uneven_last_batch(ours: bool, tmp_path: Path) -> None:
    first, second = in_two_processes(trained, tmp_path, str(tmp_path / "two"), ours, ROWS)
    assert first == second
    alone = trained(None, str(tmp_path / "one"), ours, 24)  # what two processes see of 22
    assert alone["chosen"] == first["chosen"]
    for one, two in zip(alone["weights"], first["weights"], strict=True):
        assert two == pytest.approx(one, abs=1e-5)
