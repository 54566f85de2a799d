"""Batches of every class are brought to where the model is, and stay as they are."""

from __future__ import annotations

from collections import UserDict
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from tests.models import adapted, class_batches, tiny_bert
from torch import Tensor, nn
from transformers import BatchEncoding

import rankwise
from rankwise.scores.batches import beside, to_device

ELSEWHERE = nn.Linear(2, 2, device="meta")


class Pair(NamedTuple):
    """A batch of a user's own."""

    ids: Tensor
    more: list[Any]


class Holder:
    """One that nobody knows how to move."""

    ids = torch.zeros(2, 3)


def devices(value: Any) -> set[str]:
    if isinstance(value, Tensor):
        return {value.device.type}
    inside = value.values() if hasattr(value, "values") else value
    return set().union(*(devices(each) for each in inside if not isinstance(each, str)))


@pytest.mark.parametrize(
    "batch",
    [
        {"ids": torch.zeros(2, 3), "text": "as it is", "nested": {"more": [torch.ones(2), (torch.ones(1),)]}},
        BatchEncoding({"input_ids": torch.zeros(2, 3)}),
        UserDict(ids=torch.zeros(2)),
        Pair(torch.zeros(2), [torch.zeros(1)]),
        (torch.zeros(2), torch.zeros(3)),
        torch.zeros(2),
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_it_is_moved_in_a_copy_of_its_class(batch: Any) -> None:
    found = beside(batch, ELSEWHERE)
    assert type(found) is type(batch)
    assert devices(found) == {"meta"}
    assert devices(batch) == {"cpu"}


def test_what_can_not_be_moved_stays() -> None:
    holder, proxy = Holder(), MappingProxyType({"ids": torch.zeros(2)})
    assert beside(holder, ELSEWHERE) is holder
    assert beside(proxy, ELSEWHERE) is proxy
    assert devices(to_device({"input_ids": torch.zeros(2, 3)}, ELSEWHERE)) == {"meta"}


@pytest.mark.parametrize("proxy", ["grad_norm", "newton"])
def test_losses_of_ones_own_get_the_batch_in_its_class(proxy: str) -> None:
    """As a collator's BatchEncoding, whose keys are attributes."""
    seen: list[type] = []

    def loss(model: Any, batch: Any) -> Tensor:
        seen.append(type(batch))
        found: Tensor = model(input_ids=batch.input_ids, labels=batch.labels).loss
        return found

    def drawn(model: Any, batch: Any, generator: torch.Generator) -> tuple[Tensor, int]:
        seen.append(type(batch))
        logits = model(input_ids=batch.input_ids).logits
        return nn.functional.cross_entropy(logits, batch.labels, reduction="none"), len(logits)

    model = adapted(tiny_bert(), task_type="SEQ_CLS")
    batches = [BatchEncoding(batch) for batch in class_batches()]
    assert rankwise.score_paths(model, batches, proxy=proxy, compute_loss=loss, draw_losses=drawn)
    assert set(seen) == {BatchEncoding}
