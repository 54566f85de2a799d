"""The sizes of a plan by hand: parameters, memory and FLOPs, of a model or of its config alone."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from tests.models import (
    adapted,
    bert_config,
    llama_config,
    tiny_bert,
    tiny_llama,
)
from tests.traces import assert_same, snapshot
from torch import nn
from transformers import LlamaConfig, OPTConfig, PreTrainedConfig, T5Config

import rankwise

LLAMA_70B = LlamaConfig(
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    vocab_size=128256,
)
OPT_350M = OPTConfig(
    hidden_size=1024,
    ffn_dim=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    word_embed_proj_dim=512,
    do_layer_norm_before=False,
)


def config(**fields: Any) -> rankwise.HeteroLoraConfig:
    return rankwise.HeteroLoraConfig(**{"r": 2, "lora_alpha": 4, "mode": "dynamic", **fields})


@pytest.mark.parametrize(
    ("of", "fields", "expected"),
    [
        (
            bert_config(3),
            {"task_type": "SEQ_CLS", "target_modules": ["query", "value"], "budget": 0.5},
            # r (i + o) = 2 (16 + 16); the classifier is 2 x 16 + 2; sums of 16 x 16
            {"candidates": 6, "resident": 6 * 64, "budget": 192, "enabled": 192, "head": 34, "window_bytes": 6144},
        ),
        (
            llama_config(2),  # keys and values are 8 wide
            {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"], "budget": 0.25},
            {"candidates": 4, "resident": 2 * 64 + 2 * 48, "budget": 56, "enabled": 56, "head": 0},
        ),
        (
            llama_config(2),
            {"task_type": "CAUSAL_LM", "target_modules": ["v_proj", "down_proj"], "budget": 3, "budget_unit": "paths"},
            {
                "resident": 2 * 48 + 2 * 80,
                "budget": 3,
                "budget_unit": "paths",
                "enabled": 2 * 80 + 48,
                "flops_per_token": 416,
            },
        ),
        (
            llama_config(2),
            {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "mode": "off", "modules_to_save": ["lm_head"]},
            {
                "enabled": 128,
                "contributing": 128,
                "budget": 128,
                "head": 40 * 16,
                "optimizer_bytes": 8 * (128 + 640),
                "gradient_bytes": 4 * (128 + 640),
                "window_bytes": 0,
            },
        ),
        (
            llama_config(2),
            {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "budget": 10**6},
            {"enabled": 128, "budget": 10**6},
        ),
        (llama_config(2), {"target_modules": ["q_proj"], "budget": 0}, {"enabled": 0, "flops_per_token": 0}),
        (
            llama_config(2),
            {"task_type": "CAUSAL_LM", "target_modules": ["v_proj"], "score_on": "factors", "budget": 0.5},
            {"window_bytes": 2 * 48 * 4},
        ),
        (
            llama_config(2),
            {"task_type": "CAUSAL_LM", "target_modules": ["v_proj"], "sketch": 5, "budget": 0.5},
            {"window_bytes": 2 * 8 * 5 * 4},
        ),
        (
            llama_config(2),
            {"task_type": "CAUSAL_LM", "target_modules": ["v_proj"], "sketch": 5, "proxy": "snip", "budget": 0.5},
            {"window_bytes": 2 * 8 * 16 * 4},  # snip is exact whatever the sketch says
        ),
        (
            OPT_350M,
            {"r": 8, "target_modules": ["q_proj", "v_proj"]},
            {"candidates": 48, "resident": 786_432, "enabled": 196_608},
        ),
    ],
)
def test_a_plan_equals_counts_by_hand(of: PreTrainedConfig, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    made = rankwise.plan(of, config(**fields)).to_dict()
    assert {name: made[name] for name in expected} == expected
    assert made["frozen"] == 0
    assert made["contributing"] == made["enabled"]


def test_seventy_billion_parameters_are_planned_without_memory() -> None:
    chosen = config(r=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", modules_to_save=None)
    made = rankwise.plan(LLAMA_70B, chosen)
    assert made.base == 70_553_706_496
    assert made.resident == 80 * 16 * ((8192 + 8192) + (8192 + 1024))
    assert made.budget == made.resident // 4
    assert made.window_bytes == 80 * (8192 + 1024) * 16 * 4, "exact sums would not fit, so they are sketched"
    assert asdict(chosen) == asdict(config(r=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_plan_of_a_model_and_of_its_config_agree_and_leave_both_alone(seed: int) -> None:
    base, fields = tiny_bert(seed=seed), config(task_type="SEQ_CLS", target_modules=["query"], budget=0.5)
    before = snapshot(base)
    made = rankwise.plan(base, fields)
    assert made == rankwise.plan(base.config, fields)
    assert made.base == sum(p.numel() for p in base.parameters())
    assert asdict(fields) == asdict(config(task_type="SEQ_CLS", target_modules=["query"], budget=0.5))
    assert_same(before, snapshot(base))


@pytest.mark.parametrize("on_disable", ["keep", "freeze"])
def test_the_plan_of_a_live_model_is_what_is_on(on_disable: str) -> None:
    fields: dict[str, Any] = {
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        "on_disable": on_disable,
    }
    model = adapted(tiny_llama(), **fields)
    rankwise.apply_(model, [rankwise.Disable("layers.0.q_proj"), rankwise.Disable("layers.1.v_proj")])
    made, paths = rankwise.plan(model), rankwise.named_paths(model).values()
    assert made.enabled == 64 + 48 == sum(path.num_parameters for path in paths if path.enabled)
    assert made.contributing == sum(path.num_parameters for path in paths if path.contributing)
    assert made.frozen == made.contributing - made.enabled == (112 if on_disable == "freeze" else 0)
    assert made.base == sum(p.numel() for p in tiny_llama().parameters())
    assert made.flops_per_token == 2 * made.contributing
    planned = rankwise.plan(tiny_llama(), config(**fields))
    assert (planned.resident, planned.head, planned.base) == (made.resident, made.head, made.base)


T5 = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)


@pytest.mark.parametrize(
    ("task_type", "of", "target", "head"),
    [
        ("FEATURE_EXTRACTION", bert_config(), "query", 0),
        pytest.param("TOKEN_CLS", bert_config(), "query", 34),
        pytest.param("QUESTION_ANS", bert_config(), "query", 34),
        pytest.param("SEQ_2_SEQ_LM", T5, "q", 0),
    ],
)
def test_a_plan_knows_the_heads_of_other_tasks(task_type: str, of: PreTrainedConfig, target: str, head: int) -> None:
    assert rankwise.plan(of, config(task_type=task_type, target_modules=[target], budget=0.5)).head == head


@pytest.mark.parametrize(
    ("of", "fields", "words"),
    [
        (bert_config(), None, "needs the HeteroLoraConfig to plan for"),
        (tiny_bert(), None, "BertForSequenceClassification has no rankwise paths"),
        (bert_config(), {"target_modules": ["q_proj"]}, "'q_proj', which matches no module.*linear layers are"),
        (nn.Linear(2, 2), {"target_modules": ["q_proj"]}, r"takes a transformers model or config.*got Linear"),
    ],
)
def test_what_cannot_be_planned_is_said(of: Any, fields: dict[str, Any] | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rankwise.plan(of, None if fields is None else config(**fields))
