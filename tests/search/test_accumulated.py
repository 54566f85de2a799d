"""Gradient accumulation over two processes makes of an adapter what one process makes of the whole batch at once."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import class_batches
from tests.processes import in_two_processes
from tests.search.test_callback import EXAMPLES, Examples
from tests.search.test_distributed import model as one_that_searches
from tests.search.test_uneven import loss_of
from torch import Tensor
from transformers import Trainer, TrainingArguments

import rankwise
from rankwise.scores.probe import model_loss

STEPS = 8
SEED = 1  # whose draw is another choice than that of the scores
EPSILON = 1e-4  # of AdamW: at 1e-8 a gradient that is rounding alone would move a number by the whole rate


def searching() -> Any:
    return one_that_searches(None, warmup_searches=1, seed=SEED)  # the first one draws, and the scores change that


def outcome(model: Any) -> dict[str, Any]:
    history = rankwise.history(model)
    weights = [p.flatten().tolist() for p in model.parameters() if p.requires_grad]
    paths = [path.lora_B.flatten().tolist() for path in rankwise.named_paths(model).values()]
    return {
        "chosen": [record["chosen"] for record in history],
        "scores": [record["scores"] for record in history],
        "weights": [*weights, *paths],
    }


def looped(share: slice | None, syncs: bool) -> dict[str, Any]:
    """Train in a plain loop; a process's share of a batch in two parts of one row each."""
    model = searching()
    wrapped: Any = model if share is None else torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2, eps=EPSILON)
    for batch in class_batches(STEPS):
        parts = [slice(0, 4)] if share is None else [slice(row, row + 1) for row in range(share.start, share.stop)]
        for part in parts:
            waits = part is not parts[-1] and not syncs
            with wrapped.no_sync() if waits else nullcontext():
                wrapped(**{key: value[part] for key, value in batch.items()}).loss.div(len(parts)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return outcome(model)


def trained(share: slice | None, folder: str) -> dict[str, Any]:
    """Train with Trainer: eight rows a step, in one batch or in two processes and two micro-batches of two each."""
    model = searching()
    arguments = TrainingArguments(
        folder,
        max_steps=STEPS,
        per_device_train_batch_size=8 if share is None else 2,
        gradient_accumulation_steps=1 if share is None else 2,
        learning_rate=1e-2,
        adam_epsilon=EPSILON,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    callback = rankwise.AllocationCallback(compute_loss=model_loss)
    Trainer(model, arguments, train_dataset=Examples(), callbacks=[callback], compute_loss_func=loss_of).train()
    return outcome(model)


def check_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert len(one["chosen"]) >= 3
    assert len({tuple(chosen) for chosen in one["chosen"]}) > 1  # a choice that never changes shows little
    assert one["chosen"] == other["chosen"]
    for a, b in zip(one["scores"], other["scores"], strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    for x, y in zip(one["weights"], other["weights"], strict=True):
        assert Tensor(x).allclose(Tensor(y), rtol=0, atol=1e-5)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("syncs", [False, True], ids=["no_sync", "synced"])
def test_a_loop_over_two_processes(syncs: bool, tmp_path: Path) -> None:
    first, second = in_two_processes(looped, tmp_path, syncs)
    assert first == second
    check_same(looped(None, True), first)


@pytest.mark.distributed
@pytest.mark.slow
def test_trainer_over_two_processes(tmp_path: Path) -> None:
    assert EXAMPLES % 8 == 0  # an epoch of whole steps
    first, second = in_two_processes(trained, tmp_path, str(tmp_path / "two"))
    assert first == second
    check_same(trained(None, str(tmp_path / "one")), first)
