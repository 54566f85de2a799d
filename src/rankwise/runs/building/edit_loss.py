"""The loss around an edit, on rows that no training step sees."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.utils.data import DataLoader

from rankwise.runs.recipes.recipe import Training
from rankwise.scores.batches import to_device
from rankwise.tasks import IGNORED, LABELS, TaskData

ROWS = 512


def edit_loss(data: TaskData, training: Training) -> Callable[[nn.Module], float] | None:
    """Return what measures a model by its mean loss on the first 512 rows of the dev split; none without that split.

    A causal model's loss is a mean over tokens, any other one over rows.
    """
    return None if data.dev is None else partial(dev_loss, data, training)


def dev_loss(data: TaskData, training: Training, model: nn.Module) -> float:
    """Return the loss of the model as it stands on the first ``ROWS`` rows of the dev split."""
    assert data.dev is not None
    rows = data.dev.select(range(min(ROWS, len(data.dev))))
    device = next(model.parameters()).device
    total, count = 0.0, 0
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=training.bf16):
        for batch in DataLoader(rows, training.eval_batch_size, collate_fn=data.collator):
            labels = batch[LABELS]
            weight = int((labels[:, 1:] != IGNORED).sum()) if data.kind == "causal" else len(labels)
            if weight:
                total += weight * float(data.loss(model, to_device(batch, model)))
                count += weight
    return total / count
