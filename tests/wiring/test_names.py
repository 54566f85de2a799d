"""What the paths of a model are called: by their block, and by the shortest name that is theirs alone there."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from tests.models import VOCABULARY, adapted, bert_config, build, llama_config, tiny_bert, tiny_llama, tiny_opt
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Gemma3TextConfig,
    GPT2Config,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen3Config,
    T5Config,
)

import rankwise
from rankwise.rules.kinds import BLOCK_KINDS, kind_of
from rankwise.wiring.names import Place, locate, path_names

DECODER: dict[str, Any] = {
    **{"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "pad_token_id": 0},
}
T5 = T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)


def causal(config: PreTrainedConfig) -> nn.Module:
    model: nn.Module = build(AutoModelForCausalLM.from_config, config)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert": tiny_bert,
    "opt": lambda: tiny_opt(tie_word_embeddings=False),
    "llama": tiny_llama,
    "qwen3": lambda: causal(Qwen3Config(**DECODER)),
    "gemma3": lambda: causal(Gemma3TextConfig(**DECODER)),
    "mistral": lambda: causal(MistralConfig(**DECODER)),
    "mixtral": lambda: causal(MixtralConfig(**DECODER, num_local_experts=3)),
    "gpt2": lambda: causal(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=16)),
    "t5": lambda: build(AutoModelForSeq2SeqLM.from_config, T5),
}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.self_attn.q_proj", Place("model.layers", 3, "self_attn.q_proj")),
        ("bert.encoder.layer.11.output.dense", Place("bert.encoder.layer", 11, "output.dense")),
        ("layers.0.mlp.experts.7.w1", Place("layers", 0, "mlp.experts.7.w1")),  # the first number counts blocks
        ("0.fc", Place("", 0, "fc")),
        ("h2o.layer4.q", None),  # a digit inside a name is no number
        ("model.layers.3", None),
        ("lm_head", None),
        ("", None),
    ],
)
def test_where_a_module_is(name: str, place: Place | None) -> None:
    assert locate(name) == place


BERT = ["attention.self.query", "attention.self.value", "attention.output.dense", "intermediate.dense", "output.dense"]
LLAMA = ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]
MOE = ["mlp.gate", "mlp.experts.0.w1", "mlp.experts.1.w1", "mlp.experts.10.w1", "mlp.shared.w2"]


@pytest.mark.parametrize(
    ("stack", "inner", "expected"),
    [
        (
            "bert.encoder.layer",
            BERT,
            ["query", "value", "attention.output.dense", "intermediate.dense", "output.dense"],
        ),
        ("model.layers", LLAMA, ["q_proj", "v_proj", "down_proj"]),
        ("model.layers", MOE, ["gate", "0.w1", "1.w1", "10.w1", "w2"]),
        ("h", ["attn.c_proj", "mlp.c_proj"], ["attn.c_proj", "mlp.c_proj"]),
        ("h", ["a.x", "b.a.x", "c.b.a.x"], ["a.x", "b.a.x", "c.b.a.x"]),  # each name is a suffix of the next
        ("h", ["attn.in", "ffn.out"], ["attn.in", "out"]),  # layers.0.in would be a block path
        ("", ["fc1", "fc2"], ["fc1", "fc2"]),
    ],
)
def test_a_projection_is_named_by_the_shortest_suffix_unique_in_its_block(
    stack: str, inner: list[str], expected: list[str]
) -> None:
    prefix = f"{stack}." if stack else ""
    modules = [f"{prefix}{block}.{name}" for block in (0, 3, 12) for name in inner]
    found = path_names(modules, [*modules, "lm_head", stack])
    if inner is BERT:  # "output.dense" alone also ends "attention.output.dense", so the outer one keeps its full name
        assert found["bert.encoder.layer.3.output.dense"] == "layers.3.output.dense"
    assert list(found.values()) == [f"layers.{block}.{name}" for block in (0, 3, 12) for name in expected]
    assert list(found) == modules


def test_what_is_not_targeted_counts_for_uniqueness_too() -> None:
    modules = ["layer.0.attention.dense", "layer.0.ffn.dense"]
    assert path_names(modules[:1], modules) == {"layer.0.attention.dense": "layers.0.attention.dense"}
    assert path_names(modules[:1], modules[:1]) == {"layer.0.attention.dense": "layers.0.dense"}


def test_modules_outside_the_blocks_and_of_several_stacks_go_by_their_full_names() -> None:
    names = path_names(["lm_head", "model.layers.0.q_proj"], ["lm_head", "model.layers.0.q_proj"])
    assert names == {"lm_head": "lm_head", "model.layers.0.q_proj": "layers.0.q_proj"}
    both = ["encoder.block.0.q", "decoder.block.0.q", "lm_head"]
    assert path_names(both, both) == {name: name for name in both}
    assert path_names(["decoder.block.0.q"], both) == {"decoder.block.0.q": "layers.0.q"}
    assert path_names([], both) == {}


@pytest.mark.parametrize("own", BLOCK_KINDS)
def test_no_projection_is_taken_for_a_block_path(own: str) -> None:
    modules = [f"h.0.{own}", f"h.0.attn.{own}", f"h.0.ffn.attn.{own}"]
    names = path_names(modules, modules)
    assert names == {
        f"h.0.{own}": f"h.0.{own}",
        f"h.0.attn.{own}": f"layers.0.attn.{own}",
        f"h.0.ffn.attn.{own}": f"layers.0.ffn.attn.{own}",
    }
    assert {kind_of(name) for name in names.values()} == {"linear"}


def place_of(module: str) -> Place:
    place = locate(module)
    assert place is not None
    return place


@pytest.mark.parametrize("family", MODELS)
def test_names_in_real_models_are_unique_and_lead_back_to_their_modules(family: str) -> None:
    modules = dict(MODELS[family]().named_modules())
    targets = [name for name, module in modules.items() if "weight" in module._parameters and module.weight.ndim == 2]
    names = path_names(targets, modules)
    assert list(names) == targets
    assert len(set(names.values())) == len(targets)
    short = {module: name.split(".", 2) for module, name in names.items() if name != module}
    assert bool(short) == (family != "t5")
    for module, (layers, block, suffix) in short.items():
        assert layers == "layers"
        ends = [other for other in modules if re.search(rf"\.{block}\.(.*\.)?{re.escape(suffix)}$", other)]
        assert ends == [module] or module.endswith(f"{place_of(module).stack}.{block}.{suffix}")
        shorter = suffix.partition(".")[2]
        assert not shorter or len([o for o in modules if re.search(rf"\.{block}\..*\b{re.escape(shorter)}$", o)]) > 1


@pytest.mark.parametrize(
    ("family", "targets", "block_1"),
    [
        ("bert", ["query", "dense"], ["query", "attention.output.dense", "intermediate.dense", "output.dense"]),
        ("opt", ["q_proj", "fc2", "lm_head"], ["q_proj", "fc2"]),
        ("llama", ["q_proj", "down_proj"], ["q_proj", "down_proj"]),
        ("qwen3", ["v_proj", "up_proj"], ["v_proj", "up_proj"]),
        ("gemma3", ["o_proj", "gate_proj"], ["o_proj", "gate_proj"]),
        ("mistral", ["k_proj"], ["k_proj"]),
        ("gpt2", ["c_attn", "c_proj"], ["c_attn", "attn.c_proj", "mlp.c_proj"]),
    ],
)
def test_the_paths_of_a_family(family: str, targets: list[str], block_1: list[str]) -> None:
    paths = rankwise.named_paths(adapted(MODELS[family](), target_modules=targets))
    assert [name for name, path in paths.items() if path.blocks == (1, 1)] == [f"layers.1.{name}" for name in block_1]
    outside = [name for name, path in paths.items() if path.blocks == (-1, -1)]
    assert outside == {"bert": ["bert.pooler.dense"], "opt": ["lm_head"]}.get(family, [])
    assert {path.kind for path in paths.values()} == {"linear"}
    for path in paths.values():
        assert path.num_parameters == path.lora_A.numel() + path.lora_B.numel()
        assert (path.lora_A.shape[0], path.lora_B.shape[1], path.scaling) == (2, 2, 2.0)


def test_an_encoder_decoder_goes_by_full_names() -> None:
    paths = rankwise.named_paths(adapted(MODELS["t5"](), target_modules=["q"]))
    assert list(paths) == [
        *(f"encoder.block.{i}.layer.0.SelfAttention.q" for i in range(2)),
        *(f"decoder.block.{i}.layer.{j}" for i in range(2) for j in ("0.SelfAttention.q", "1.EncDecAttention.q")),
    ]
    assert [path.blocks for path in paths.values()] == [(0, 0), (1, 1), (0, 0), (0, 0), (1, 1), (1, 1)]


def test_names_stay_when_another_adapter_comes_beside() -> None:
    model = adapted(tiny_bert(), target_modules=["query", "dense"])
    before = list(rankwise.named_paths(model))
    model.add_adapter("other", rankwise.HeteroLoraConfig(r=2, target_modules=["dense"], mode="off"))
    assert list(rankwise.named_paths(model, "default")) == before
    assert set(rankwise.named_paths(model, "other")) == {name for name in before if name.endswith("dense")}


def test_builders_leave_the_global_generator_alone() -> None:
    import torch

    before = torch.get_rng_state()
    assert llama_config().num_key_value_heads == 2
    assert bert_config().hidden_size == 16
    adapted(tiny_llama(), target_modules=["q_proj"])
    assert torch.equal(torch.get_rng_state(), before)
