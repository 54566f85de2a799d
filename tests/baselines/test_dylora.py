from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.models import class_batches, logits, tiny_bert
from torch import nn

from rankwise.baselines import Truncation, save_truncated
from rankwise.baselines.dylora import draw_rank

R = 4


def with_lora(**fields: Any) -> PeftModel:
    """LoRA whose ``B`` has values, so that each rank contributes something of its own."""
    config = LoraConfig(**{"task_type": "SEQ_CLS", "r": R, "lora_alpha": 8, "target_modules": ["query"], **fields})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    assert isinstance(model, PeftModel)
    return model.eval()


def query(model: nn.Module) -> Any:
    return model.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query")


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("b", range(1, R + 1))
def test_a_truncated_forward_is_the_hand_computed_one(b: int, rslora: bool) -> None:
    model = with_lora(use_rslora=rslora)
    Truncation(model).rank = b
    layer = query(model).train()
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2))
    a, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    base = x @ layer.base_layer.weight.T + layer.base_layer.bias
    scale = 8 / b**0.5 if rslora else 8 / b
    torch.testing.assert_close(layer(x), base + scale * (x @ a[:b].T) @ up[:, :b].T, rtol=1e-5, atol=1e-5)
    layer(x).sum().backward()
    assert not a.grad[b:].any()
    assert not up.grad[:, b:].any()
    assert all(row.any() for row in a.grad[:b])
    assert all(column.any() for column in up.grad[:, :b].T)


def test_evaluation_is_at_full_rank_or_the_one_that_was_asked_for() -> None:
    model = with_lora()
    full = logits(model)
    truncation = Truncation(model)
    truncation.rank = 1
    assert torch.equal(logits(model), full)
    truncation.remove()
    Truncation(model, eval_rank=2)
    assert not torch.equal(logits(model), full)


def test_after_the_hooks_are_gone_it_is_pefts_lora() -> None:
    model = with_lora()
    full = logits(model)
    Truncation(model, eval_rank=1).remove()
    assert torch.equal(logits(model), full)


def test_the_ranks_are_drawn_uniformly_and_by_the_step_alone() -> None:
    drawn = Counter(draw_rank(0, step, R) for step in range(4000))
    assert set(drawn) == {1, 2, 3, 4}
    assert all(abs(count - 1000) < 120 for count in drawn.values())
    before = torch.get_rng_state()
    assert [draw_rank(3, step, 8) for step in (5, 0, 5)] == [draw_rank(3, step, 8) for step in (5, 0, 5)]
    assert torch.equal(torch.get_rng_state(), before)
    assert [draw_rank(3, step, 8) for step in range(9)] != [draw_rank(4, step, 8) for step in range(9)]


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_truncated_adapter_is_a_plain_lora_of_that_rank(tmp_path: Path, rank: int, rslora: bool) -> None:
    model = with_lora(use_rslora=rslora)
    Truncation(model, eval_rank=rank)
    measured = logits(model)
    save_truncated(model, tmp_path, rank)
    again = PeftModel.from_pretrained(tiny_bert(), tmp_path)
    config = again.peft_config["default"]
    assert isinstance(config, LoraConfig)
    assert (config.peft_type, config.r, config.lora_alpha) == ("LORA", rank, 8)
    torch.testing.assert_close(logits(again), measured, rtol=1e-5, atol=1e-6)


def test_gradient_checkpointing_sees_the_same_rank() -> None:
    grads = []
    for checkpointing in (False, True):
        model: Any = with_lora()
        Truncation(model).rank = 2
        if checkpointing:
            base: Any = model.get_base_model()
            base.activation_checkpointing_enable({"use_reentrant": False})
        model.train()(**class_batches(1)[0]).loss.backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(
    ("fields", "eval_rank", "words"),
    [
        ({}, 0, "eval_rank=0 must be a whole number from 1 to r=4"),
        ({}, 5, "eval_rank=5 must be"),
        ({"use_dora": True}, None, "use_dora=True: DyLoRA cuts B A to its first ranks; leave use_dora out"),
        ({"rank_pattern": {"layer.0.attention.self.query": 2}}, None, "rank_pattern="),
        ({"target_modules": ["word_embeddings"]}, None, "can't cut the LoRA of an embedding: leave .*word_embeddings"),
        ({"init_lora_weights": "pissa"}, None, r"init_lora_weights='pissa' .*use one of True, False, 'gaussian'"),
    ],
)
def test_what_cannot_be_cut_is_refused(fields: dict[str, Any], eval_rank: int | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Truncation(with_lora(**fields), eval_rank)
