from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from tests.models import class_batches, logits, text_batches, tiny_bert, tiny_llama, tiny_opt, tokens
from torch import Tensor, nn
from transformers import AutoModel, DistilBertConfig

from rankwise.baselines import BottleneckConfig

FAMILIES: dict[str, tuple[Any, str]] = {
    "bert": (tiny_bert, "encoder.layer.{}.output.dense"),
    "llama": (tiny_llama, "layers.{}.mlp.down_proj"),
    "opt": (tiny_opt, "layers.{}.fc2"),
}


def with_bottlenecks(base: nn.Module, **fields: Any) -> PeftModel:
    model = get_peft_model(base, BottleneckConfig(**{"bottleneck": 3, **fields}))
    assert isinstance(model, PeftModel)
    return model.eval()


def fill_(model: nn.Module) -> None:
    """Give the up projections values, so that the adapters make a difference."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bottleneck_up" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))


def places(model: nn.Module) -> set[str]:
    return {name.split(".bottleneck_")[0] for name, _ in model.named_parameters() if "bottleneck_" in name}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_start_is_the_base_model_and_the_lowest_blocks_have_none(family: str) -> None:
    make: Any
    make, place = FAMILIES[family]
    before = logits(make(blocks=4))
    model = with_bottlenecks(make(blocks=4), first_block=2)
    assert torch.equal(logits(model), before)
    found = places(model)
    assert len(found) == 2
    assert all(any(name.endswith(place.format(block)) for name in found) for block in (2, 3))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == 2 * (2 * 3 * 16 + 3 + 16)
    assert all("bottleneck_" in name for name in trained)
    fill_(model)
    assert not torch.equal(logits(model), before)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize(("activation", "function"), [("relu", F.relu), ("gelu", F.gelu), ("silu", F.silu)])
def test_the_formula(activation: str, function: Any) -> None:
    model = with_bottlenecks(tiny_bert(), activation=activation)
    fill_(model)
    layer: Any = model.get_submodule("base_model.model.bert.encoder.layer.1.output.dense")
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1))
    y = x @ layer.base_layer.weight.T + layer.base_layer.bias
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    expected: Tensor = y + function(y @ down.weight.T + down.bias) @ up.weight.T + up.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_it_trains_and_the_base_stays() -> None:
    with torch.random.fork_rng(devices=[]):  # initial values and dropout are drawn from the global generator
        torch.manual_seed(0)
        trains_and_leaves_the_base()


def trains_and_leaves_the_base() -> None:
    model = with_bottlenecks(tiny_bert(), task_type="SEQ_CLS").train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(**class_batches(1)[0]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = {name for name, p in model.named_parameters() if not p.equal(before[name])}
    assert {name for name in before if "bottleneck_" in name} <= moved
    assert all("bottleneck_" in name or "modules_to_save" in name for name in moved)


def test_saved_and_reloaded(tmp_path: Path) -> None:
    model = with_bottlenecks(tiny_bert(3), task_type="SEQ_CLS", first_block=1, activation="relu")
    fill_(model)
    model.save_pretrained(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    again = PeftModel.from_pretrained(tiny_bert(3), tmp_path)
    assert torch.equal(logits(again), logits(model))
    config = again.peft_config["default"]
    assert isinstance(config, BottleneckConfig)
    assert (config.bottleneck, config.first_block, config.activation) == (3, 1, "relu")
    trainable = PeftModel.from_pretrained(tiny_bert(3), tmp_path, is_trainable=True)
    assert any(p.requires_grad for name, p in trainable.named_parameters() if "bottleneck_" in name)


def test_a_second_adapter_is_independent() -> None:
    model = with_bottlenecks(tiny_bert())
    plain = logits(model)
    fill_(model)
    first = logits(model)
    model.add_adapter("second", BottleneckConfig(bottleneck=2))
    model.set_adapter("second")
    assert torch.equal(logits(model), plain)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)


def test_bfloat16_and_gradient_checkpointing() -> None:
    base: Any = tiny_llama()
    model: Any = with_bottlenecks(base.to(torch.bfloat16))
    fill_(model)
    assert model(input_ids=tokens()).logits.dtype == torch.bfloat16
    model = with_bottlenecks(tiny_llama()).train()
    fill_(model)
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(**text_batches(1)[0]).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"bottleneck": 0}, "bottleneck=0 must be a whole number of at least 1"),
        ({"first_block": -1}, "first_block=-1 must be a whole number of at least 0"),
        ({"activation": "glu"}, r"activation='glu' is not one of .*did you mean 'gelu'\?"),
        ({"first_block": 2}, "the blocks go up to 1, so none would get an adapter; give at most 1"),
        ({"target_modules": ["fc3"]}, "matches no module of BertForSequenceClassification"),
        ({"target_modules": ["output"]}, "a BertSelfOutput: an adapter follows a linear layer"),
    ],
)
def test_mistakes_are_corrected(fields: dict[str, Any], words: str) -> None:
    base = tiny_bert()
    names = [name for name, _ in base.named_modules()]
    with pytest.raises(ValueError, match=words):
        with_bottlenecks(base, **fields)
    assert [name for name, _ in base.named_modules()] == names


def test_an_unknown_family_is_named() -> None:
    base = AutoModel.from_config(DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=24, vocab_size=40))
    with pytest.raises(ValueError, match=r"feed-forward part of 'distilbert' is not known.*target_modules=\['fc2'\]"):
        with_bottlenecks(base)
    assert len(places(with_bottlenecks(base, target_modules=["lin2"]))) == 1


def test_it_is_not_merged_by_half() -> None:
    model = with_bottlenecks(tiny_bert())
    fill_(model)
    before = logits(model)
    with pytest.raises(ValueError, match="keep the adapter as it is"):
        model.merge_and_unload()
    assert torch.equal(logits(model), before)
