"""How a block is checkpointed: as transformers sets it, and by a wrapper around it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tests.models import adapted, class_batches, fill_, tiny_bert, tiny_llama, tiny_opt
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.utils.checkpoint import checkpoint

import rankwise
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


STILL: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def wrapped(model: Any, way: CheckpointImpl) -> None:
    """Put a checkpoint around each block, as accelerate's FSDP plugin does."""
    blocks = set(model.get_base_model().bert.encoder.layer)
    apply_activation_checkpointing(
        model, checkpoint_wrapper_fn=partial(checkpoint_wrapper, checkpoint_impl=way), check_fn=lambda m: m in blocks
    )


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**class_batches(1)[0]).loss.backward()
    paths: Any = rankwise.named_paths(model).values()
    return {path.name: path.lora_B.grad.clone() for path in paths}


@pytest.mark.parametrize("way", CheckpointImpl)
def test_a_wrapper_around_a_block_leaves_what_stays_inside_of_it_alone(way: CheckpointImpl) -> None:
    model = adapted(tiny_bert(3, **STILL), target_modules=["query"], shortcuts=["res1", "res2", "in", "layer"]).train()
    fill_(model)
    expected = gradients(model)
    wrapped(model, way)
    if way == CheckpointImpl.REENTRANT:
        model.enable_input_require_grads()
    torch.testing.assert_close(gradients(model), expected)


@pytest.mark.parametrize("way", CheckpointImpl)
@pytest.mark.parametrize("kind", ["cut", "layer"])
def test_what_comes_from_another_block_is_refused_there(kind: str, way: CheckpointImpl) -> None:
    model = adapted(tiny_bert(3, **STILL), target_modules=[], shortcuts=[kind]).train()
    fill_(model)
    if kind == "layer":
        rankwise.apply_(model, [rankwise.Merge("layers.0.layer", "layers.1.layer")])
    gradients(model)
    wrapped(model, way)
    if way == CheckpointImpl.REENTRANT:
        model.enable_input_require_grads()
    with pytest.raises(ValueError, match=rf"block \d is called again in the backward pass.*{kind}.*checkpoint by"):
        gradients(model)
