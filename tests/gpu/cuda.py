"""What the tests on a GPU share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from tests.models import Batch
from torch import Tensor, nn

CUDA = torch.device("cuda")
ON_CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    # What has no deterministic kernel (attention's backward pass, labels of every token) warns under `_deterministic`.
    pytest.mark.filterwarnings("ignore:.*determinis:UserWarning"),
]


def there(model: Any, *to: Any) -> Any:
    """Return a model on the GPU, in another precision or on another device where one is given."""
    return model.to(CUDA).to(*to) if to else model.to(CUDA)


def moved(batches: Sequence[Batch]) -> list[Batch]:
    return [{name: value.to(CUDA) for name, value in batch.items()} for batch in batches]


def one_step(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the loss and the gradients of a training step, in float64 on the CPU."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: tensor.detach().double().cpu() for name, tensor in {"loss": loss, **found}.items()}


def adamw(model: nn.Module, **options: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2, weight_decay=0.1, **options)
