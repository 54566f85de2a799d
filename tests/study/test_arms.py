"""The arms of a race: the same number of parameters, the recipe's scale, the right projections."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from tests.families import FAMILIES
from tests.models import tiny_bert, tiny_llama, tiny_opt
from torch import nn
from transformers import Qwen3MoeForCausalLM

from rankwise.runs.building.models import adapt, load_base, load_config
from rankwise.runs.dryrun import stand_in
from rankwise.runs.recipes.methods import Method
from rankwise.runs.recipes.recipe import Recipe, load_recipe, parse_recipe
from rankwise.runs.sizes import plan_recipe
from rankwise.study.arms import DEFAULT, NAMES, PLANNED, RANK, SCALE, YOURS, _planned, _scale, _sized, _targets, arms_of
from rankwise.study.working import load_data


def causal(room: Path) -> Recipe:
    content = {
        "model": {"name": "meta-llama/Llama-2-7b-hf"},
        "data": {"task": "text", "train_file": "not-there"},
        "method": {"name": "lora", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
    }
    return stand_in(parse_recipe(content), room)


def enabled(recipe: Recipe, method: dict[str, object]) -> int:
    return int(plan_recipe(recipe.model_copy(update={"method": Method.model_validate(method)}))["enabled"])


@pytest.mark.parametrize("family", ["roberta", "llama"])
def test_arms_have_the_parameters_of_the_recipe_and_its_scale(family: str, base: Path, tmp_path: Path) -> None:
    recipe = load_recipe(base) if family == "roberta" else causal(tmp_path / "llama")
    arms = arms_of(recipe, load_data(recipe))
    assert list(arms.methods) == [DEFAULT, "q,v", "MLP", "LoR2C", "all-linear + residual", PLANNED, YOURS]
    assert arms.left_out == []
    assert arms.budget == enabled(recipe, recipe.method.model_dump())
    for name, method in arms.methods.items():
        cost = enabled(recipe, method)
        assert cost <= arms.budget or method["r"] == 1, name
        assert method["lora_alpha"] / method["r"] == pytest.approx(2.0 if family == "roberta" else 1.0)
    assert arms.methods["q,v"]["target_modules"] == (
        ["query", "value"] if family == "roberta" else ["q_proj", "v_proj"]
    )
    assert arms.methods["q,v"]["r"] == 4  # the recipe itself


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")  # PEFT's own default
def test_where_peft_takes_an_mlp_for_experts_the_plan_leaves_it_out(tmp_path: Path) -> None:
    recipe = causal(tmp_path)
    config = FAMILIES["qwen3-moe"](2).config
    config.vocab_size, config.eos_token_id = load_config(recipe.model).vocab_size, 3
    Qwen3MoeForCausalLM(config).save_pretrained(recipe.model.name)
    arms = arms_of(recipe, load_data(recipe))
    assert arms.left_out == ["MLP: the first block has no projections for plain LoRA but the attention's"]
    assert list(arms.methods) == [name for name in NAMES if name != "MLP"]
    assert not re.search("gate_proj|up_proj|down_proj", str(arms.methods[PLANNED]))
    assert arms_of(recipe, load_data(recipe), without=["MLP", PLANNED]).left_out == []
    assert enabled(recipe, arms.methods[PLANNED]) <= arms.budget


def test_a_recipe_that_is_one_of_the_arms_is_told(base: Path) -> None:
    recipe = load_recipe(base)
    others = ["MLP", "LoR2C", "all-linear + residual", PLANNED]
    arms = arms_of(recipe, load_data(recipe), without=others)
    assert arms.twin == "q,v"
    assert arms.methods[YOURS] == arms.methods["q,v"]
    assert arms_of(recipe, load_data(recipe), without=[*others, YOURS]).twin is None
    assert arms_of(recipe, load_data(recipe), budget=3 * arms.budget, without=others).twin is None  # of another rank


def test_what_else_the_recipe_trains_trains_in_every_arm(tmp_path: Path) -> None:
    recipe = causal(tmp_path / "llama")
    also = recipe.model_copy(
        update={"method": method(r=4, lora_alpha=4, target_modules=["q_proj"], modules_to_save=["lm_head"])}
    )
    arms = arms_of(also, load_data(also), without=["LoR2C", PLANNED])
    assert len(arms.methods) == 5
    assert all(options["modules_to_save"] == ["lm_head"] for options in arms.methods.values())


def test_no_rank_is_planned_for_what_trains_as_a_whole_in_every_arm(base: Path) -> None:
    recipe = load_recipe(base)
    given = method(r=4, lora_alpha=8, target_modules=["query", "value"], modules_to_save=["intermediate.dense"])
    also = recipe.model_copy(update={"method": given})
    arms = arms_of(
        also, load_data(also), budget=700, without=[name for name in NAMES if name not in (DEFAULT, PLANNED)]
    )
    assert arms.left_out == []
    for name, options in arms.methods.items():
        assert options["modules_to_save"] == ["intermediate.dense"], name
        own = also.model_copy(update={"method": Method.model_validate(options)})
        model: Any = adapt(load_base(own, task_type="SEQ_CLS", arguments={"num_labels": 2}), own, "SEQ_CLS")
        built = sum(p.numel() for part, p in model.named_parameters() if "lora_" in part)
        assert built <= 700 or options["r"] == 1, name
        assert not [module for module in model.targeted_module_names if "intermediate" in module], name


def test_a_plan_that_the_rows_are_too_few_for_is_left_out_and_the_reason_said(base: Path) -> None:
    recipe = load_recipe(base)
    one = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_train_samples": 1})})
    arms = arms_of(one, load_data(one), without=[name for name in NAMES if name not in (DEFAULT, PLANNED)])
    assert list(arms.methods) == [DEFAULT]
    assert [reason.startswith("the rank plan can't be made: ") for reason in arms.left_out] == [True]


def test_the_mlp_of_bert_leaves_the_attention_out(base: Path) -> None:
    recipe = load_recipe(base)
    pattern = arms_of(recipe, load_data(recipe)).methods["MLP"]["target_modules"]
    stem = "roberta.encoder.layer.1."
    assert re.fullmatch(pattern, f"{stem}output.dense")
    assert re.fullmatch(pattern, f"{stem}intermediate.dense")
    assert not re.fullmatch(pattern, f"{stem}attention.output.dense")


def method(name: str = "lora", **options: Any) -> Method:
    return Method.model_validate({"name": name, **options})


@pytest.mark.parametrize(
    ("given", "scale"),
    [
        (method(r=4, lora_alpha=8), 2.0),
        (method(r=8, lora_alpha=4), 0.5),
        (method(r=4), SCALE),
        (method(lora_alpha=16), SCALE),
        (method("full"), SCALE),
        (method("adalora", init_r=4, lora_alpha=16), SCALE),
    ],
)
def test_arms_take_the_scale_of_the_recipe_where_it_has_one(given: Method, scale: float) -> None:
    assert _scale(given) == scale


def test_an_arm_has_the_highest_rank_that_fits_and_its_scale(base: Path) -> None:
    recipe = load_recipe(base)
    options: dict[str, Any] = {
        **{"name": "heterolora", "mode": "off", "r": 1, "lora_alpha": 2.0, "target_modules": ["query"]},
        **{"shortcuts": ["res1"], "shortcut_alpha": 3.0},
    }
    one = 2 * 2 * (32 + 32)  # of two blocks two paths, each from 32 to 32
    for budget, rank in ((1, 1), (2 * one - 1, 1), (2 * one, 2), (99 * one, 32), (10 * one + 7, 10)):
        found = _sized(recipe, options, budget, 32)
        assert found == {**options, "r": rank, "lora_alpha": 2.0 * rank, "shortcut_alpha": 3.0 * rank}
    assert enabled(recipe, found) == 10 * one
    assert options["r"] == 1, "what was given stays"


@pytest.mark.parametrize(
    ("make", "attention", "rest"),
    [
        (tiny_llama, ["q_proj", "v_proj"], ["down_proj", "gate_proj", "up_proj"]),
        (tiny_opt, ["q_proj", "v_proj"], ["fc1", "fc2"]),
        (tiny_bert, ["query", "value"], None),
    ],
)
def test_projections_are_those_of_the_family(
    make: Callable[[], nn.Module], attention: list[str], rest: list[str] | None
) -> None:
    found, pattern = _targets(make())
    assert found == attention
    if rest is not None:
        assert pattern == rest
        return
    matched = [name for name, _ in make().named_modules() if re.fullmatch(str(pattern), name)]
    assert matched == [
        f"bert.encoder.layer.{block}.{name}" for block in (0, 1) for name in ("intermediate.dense", "output.dense")
    ]


def test_a_dense_first_block_that_peft_takes_for_experts_is_no_mlp() -> None:
    config = FAMILIES["qwen3-moe"](2).config
    config.mlp_only_layers = [0]
    assert _targets(Qwen3MoeForCausalLM(config)) == (["q_proj", "v_proj"], [])


def test_a_model_of_an_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match="anatomy"):
        _targets(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("patterns", [{}, {"rank_pattern": {"a.q": 3}}, {"alpha_pattern": {"a.q": 6, "b.q": 2}}])
def test_a_plan_becomes_a_method_of_a_recipe(patterns: dict[str, Any]) -> None:
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["b.q", "a.q"], **patterns)
    found = _planned(config)
    assert found == {"name": "lora", "r": 2, "lora_alpha": 4, "target_modules": ["a.q", "b.q"], **patterns}
    assert Method.model_validate(found).build("SEQ_CLS", seed=0).r == 2  # type: ignore[union-attr]


def test_of_a_full_fine_tuning_the_budget_is_all_linear_at_the_usual_rank(base: Path) -> None:
    recipe = load_recipe(base)
    recipe = recipe.model_copy(update={"method": Method(name="full")})
    found = arms_of(recipe, load_data(recipe), without=[name for name in NAMES if name not in (DEFAULT, YOURS)])
    assert list(found.methods) == [DEFAULT, YOURS]
    assert found.budget == enabled(recipe, {"name": "lora", "r": RANK, "target_modules": "all-linear"})
    assert (found.methods[DEFAULT]["r"], found.methods[DEFAULT]["lora_alpha"]) == (RANK, SCALE * RANK)
    assert found.methods[YOURS] == {"name": "full"}
    assert list(found.above) == [YOURS]
