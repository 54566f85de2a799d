"""Paths beside frozen weights in 4 or 8 bits: scored and trained as beside the same weights in full precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from scipy.stats import spearmanr
from tests.models import adapted, fill_, logits, text_batches, tiny_llama
from torch import nn

import rankwise
from rankwise.paths.low_rank_path import dequantised_weight
from rankwise.rules.records import SearchRecord


def with_bitsandbytes(make: Callable[[Any, nn.Linear], nn.Linear]) -> Any:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="comes with the extra 'quantised'")
    model = tiny_llama()
    for name, module in list(model.model.layers.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, leaf = name.rpartition(".")
            setattr(model.model.layers.get_submodule(parent), leaf, make(bitsandbytes, module).to("cpu"))
    return model


def four_bits(bitsandbytes: Any, module: nn.Linear) -> nn.Linear:
    made: nn.Linear = bitsandbytes.nn.Linear4bit(module.in_features, module.out_features, bias=False, quant_type="nf4")
    made.weight = bitsandbytes.nn.Params4bit(module.weight.data.clone(), requires_grad=False, quant_type="nf4")
    return made


def eight_bits(bitsandbytes: Any, module: nn.Linear) -> nn.Linear:
    made: nn.Linear = bitsandbytes.nn.Linear8bitLt(
        module.in_features, module.out_features, bias=False, has_fp16_weights=False
    )
    made.weight = bitsandbytes.nn.Int8Params(module.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
    return made


def torchao_int8() -> Any:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is installed for the quantised step only")
    model = tiny_llama()
    torchao.quantize_(model.model.layers, torchao.Int8WeightOnlyConfig())
    return model


pytestmark = pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated:UserWarning")  # none is merged
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BASES: dict[str, Callable[[], Any]] = {
    "bitsandbytes-4bit": lambda: with_bitsandbytes(four_bits),
    "bitsandbytes-8bit": lambda: with_bitsandbytes(eight_bits),
    "torchao-int8": torchao_int8,
}


def dense_twin(quantised: Any) -> Any:
    """The float model with exactly the weights that the quantised one stands for."""
    twin = tiny_llama()
    with torch.no_grad():
        for name, module in twin.model.layers.named_modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(dequantised_weight(quantised.model.layers.get_submodule(name)))
    return twin


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("proxy", ["grad_norm", "snip", "newton"])
def test_scores_are_those_beside_the_same_weights_in_full(base: str, proxy: str) -> None:
    quantised = BASES[base]()
    dense = dense_twin(quantised)
    found, expected = (
        rankwise.score_paths(
            adapted(model, task_type="CAUSAL_LM", target_modules=PROJECTIONS, shortcuts=["res1"]),
            text_batches(3, size=4),
            proxy=proxy,
        )
        for model in (quantised, dense)
    )
    if base == "bitsandbytes-8bit":  # rounds the activations, too, and with them the odds that labels are drawn by
        names = list(expected)
        assert spearmanr([found[name] for name in names], [expected[name] for name in names]).statistic > 0.8
    else:
        assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("base", BASES)
def test_a_search_trains_saves_and_comes_back(base: str, tmp_path: Path) -> None:
    quantised, again = BASES[base](), BASES[base]()
    config = rankwise.HeteroLoraConfig(
        r=2,
        task_type="CAUSAL_LM",
        target_modules=["q_proj", "v_proj", "down_proj"],
        budget=0.5,
        mode="dynamic",
        search_every=2,
        score_batches=2,
    )
    model = get_peft_model(quantised, config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    rankwise.Allocator(model, optimizer, batches=text_batches(2))
    logits(model)  # bitsandbytes finishes its 8-bit weights in the first forward pass; a look at them changes nothing
    frozen = {
        name: dequantised_weight(m.base_layer).clone() for name, m in model.named_modules() if hasattr(m, "base_layer")
    }
    for batch in text_batches(4):
        model.train()(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [record.step for record in rankwise.history(model) if isinstance(record, SearchRecord)] == [0, 2, 4]
    for name, module in model.named_modules():
        if name in frozen:
            assert torch.equal(dequantised_weight(module.base_layer), frozen[name])
    fill_(model)
    expected = logits(model)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(again, tmp_path)
    torch.testing.assert_close(logits(loaded), expected)


@pytest.mark.parametrize("base", BASES)
def test_a_plan_chooses_as_beside_the_same_weights_in_full(base: str) -> None:
    if base == "bitsandbytes-8bit":
        pytest.skip("its activations are rounded, too: near ties may turn")
    quantised = BASES[base]()
    plans = [
        rankwise.rank_plan(model, text_batches(4, size=4), budget=300, target_modules=PROJECTIONS).ranks
        for model in (quantised, dense_twin(quantised))
    ]
    assert plans[0] == plans[1]
