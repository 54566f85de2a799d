"""How a block is checkpointed, as transformers sets it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from tests.models import tiny_bert, tiny_llama, tiny_opt
from torch import nn
from torch.utils.checkpoint import checkpoint

from rankwise.wiring.checkpointing import is_reentrant


@pytest.mark.parametrize("make", [tiny_bert, tiny_llama, tiny_opt])
def test_it_is_read_off_every_block(make: Any) -> None:
    model = make()
    blocks = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    found = []
    for asked in ({"use_reentrant": True}, {"use_reentrant": False}, {"use_reentrant": True}):
        model.activation_checkpointing_enable(asked)
        found.append({is_reentrant(block) for block in blocks if block.gradient_checkpointing})
    assert found == [{True}, {False}, {True}]
    model.activation_checkpointing_disable()
    assert not any(is_reentrant(block) for block in model.modules())


def test_a_block_that_nobody_checkpoints_is_not_reentrant() -> None:
    assert not any(is_reentrant(module) for module in tiny_bert().modules())


def test_transformers_asks_for_the_reentrant_way_by_saying_nothing() -> None:
    block: Any = nn.Linear(1, 1)
    block._gradient_checkpointing_func = partial(checkpoint)
    assert is_reentrant(block)
    block._gradient_checkpointing_func = checkpoint  # what is not transformers' own form
    assert not is_reentrant(block)
