"""Which modules PEFT takes for experts, against what it builds."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from tests.families import FAMILIES
from tests.models import VOCABULARY, adapted, build, tiny_llama
from torch import nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

import rankwise
from rankwise.method.conversion import converted, refuse_converted
from rankwise.method.targets import all_linear

DENSE = [f"model.layers.1.mlp.{name}" for name in ("down_proj", "gate_proj", "up_proj")]


def deepseek() -> Any:
    """A dense block, then one with experts and a shared one."""
    config = DeepseekV3Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        qk_nope_head_dim=4,
        first_k_dense_replace=1,
        n_shared_experts=1,
        initializer_range=0.2,
    )
    return build(DeepseekV3ForCausalLM, config)


def found_by_peft(base: nn.Module, module: str) -> list[str]:
    """The modules that plain LoRA is on, of a config that names one."""
    try:
        model = get_peft_model(copy.deepcopy(base), LoraConfig(target_modules=[module]))
    except ValueError:  # it wants what is joined together
        return []
    return [name for name, each in model.get_base_model().named_modules() if isinstance(each, LoraLayer)]


@pytest.mark.parametrize("name", ["deepseek", "qwen3-moe", "qwen2-moe", "mixtral", "llama", "bert"])
def test_a_module_is_converted_where_peft_builds_another(name: str) -> None:
    base = deepseek() if name == "deepseek" else FAMILIES[name](2)
    modules = all_linear(base)
    assert converted(base, modules) == [module for module in modules if found_by_peft(base, module) != [module]]


def test_a_dense_mlp_and_shared_experts_are_converted_and_attention_is_not() -> None:
    assert converted(FAMILIES["qwen3-moe"](2), all_linear(FAMILIES["qwen3-moe"](2))) == DENSE
    shared = "model.layers.1.mlp.shared_experts.up_proj"
    assert converted(deepseek(), [shared, "model.layers.1.self_attn.o_proj"]) == [shared]
    assert converted(nn.Linear(2, 2), ["gate_proj"]) == []


def test_a_config_of_ours_stays_as_it_is() -> None:
    model = adapted(FAMILIES["qwen3-moe"](2), target_modules=DENSE)
    assert {path.module for path in rankwise.named_paths(model).values()} == set(DENSE)


def test_where_an_expression_has_to_tell_names_apart_all_are_converted() -> None:
    """PEFT keeps the last names of what an expression matches, so it would find them in every block."""
    module = "model.layers.0.self_attn.q_proj"
    for base, expected in ((FAMILIES["qwen3-moe"](2), [module]), (tiny_llama(), [])):
        assert converted(base, [module], [f"teacher.{module}"]) == expected
        assert converted(base, [module], [f"teacher.{module.replace('q_', 'k_')}"]) == []


def test_the_refusal_names_some_and_says_what_to_do() -> None:
    refuse_converted([], "leave them out")
    with pytest.raises(ValueError, match=r"^PEFT takes a, b, c and 1 more for the experts .* instead: leave them out$"):
        refuse_converted(["a", "b", "c", "d"], "leave them out")
