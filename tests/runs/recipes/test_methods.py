"""The methods by name: which options each takes, of which type, and the PEFT config that they make."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from peft import AdaLoraConfig, LoraConfig, PrefixTuningConfig

import rankwise
from rankwise.baselines import BottleneckConfig
from rankwise.runs.recipes.methods import Method, as_kept, config_class
from rankwise.runs.recipes.reading import merged
from rankwise.runs.recipes.recipe import parse_recipe

SMALL: dict[str, Any] = {"model": {"name": "m"}, "data": {"task": "mrpc"}, "method": {"name": "lora", "r": 4}}


def wrong(**changes: Any) -> str:
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse_recipe(merged(SMALL, changes))
    return str(caught.value)


def test_full_fine_tuning_takes_no_options() -> None:
    assert "method 'full' takes no options (given: r=4)" in wrong(method={"name": "full"})


def test_a_method_builds_its_config() -> None:
    lora = parse_recipe(SMALL).method.build("SEQ_CLS", seed=3)
    assert type(lora) is LoraConfig
    assert lora.r == 4
    searched = parse_recipe(merged(SMALL, {"method": {"name": "heterolora", "budget": 0.5}})).method
    built = searched.build("CAUSAL_LM", seed=3)
    assert isinstance(built, rankwise.HeteroLoraConfig)
    assert (built.budget, built.seed, str(built.task_type)) == (0.5, 3, "CAUSAL_LM")
    own_seed = parse_recipe(merged(SMALL, {"method": {"name": "heterolora", "seed": 8}})).method
    assert own_seed.build("SEQ_CLS", seed=3).seed == 8  # type: ignore[union-attr]
    assert parse_recipe({**SMALL, "method": {"name": "full"}}).method.build("SEQ_CLS", seed=0) is None


def test_the_methods_own_checks_speak() -> None:
    method = parse_recipe(merged(SMALL, {"method": {"name": "heterolora", "proxy": "grad_nrom"}})).method
    with pytest.raises(ValueError, match="did you mean 'grad_norm'"):
        method.build("SEQ_CLS", seed=0)


CONFIGS = {
    "heterolora": rankwise.HeteroLoraConfig,
    "lor2c": rankwise.Lor2cConfig,
    "lora": LoraConfig,
    "adalora": AdaLoraConfig,
    "dylora": LoraConfig,
    "adapterdrop": BottleneckConfig,
    "prefix": PrefixTuningConfig,
}
NEEDED: dict[str, dict[str, Any]] = {"prefix": {"num_virtual_tokens": 3}}


@pytest.mark.parametrize("name", CONFIGS)
def test_each_method_has_its_config(name: str) -> None:
    assert config_class(name) is CONFIGS[name]
    built = Method(name=name, **NEEDED.get(name, {})).build("CAUSAL_LM", seed=5)  # type: ignore[arg-type]
    assert type(built) is CONFIGS[name]
    assert str(vars(built)["task_type"]) == "CAUSAL_LM"
    assert getattr(built, "seed", 5) == 5


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("lora", {"peft_type": "LORA"}, "method 'lora' has no option 'peft_type'"),
        ("heterolora", {"total_steps": 3}, "has no option 'total_steps'"),
        ("lora", {"inference_mode": True}, "has no option 'inference_mode'"),
        ("lora", {"eval_rank": 2}, r"has no option 'eval_rank'.* \(given: eval_rank=2\)"),
        ("adalora", {"r": 8}, r"has no option 'r'.* \(given: r=8\)"),
        ("adalora", {"total_step": 8}, "has no option 'total_step'"),
        ("full", {"lora_alpha": 8}, r"method 'full' takes no options \(given: lora_alpha=8\)"),
        ("lora", {"r": "4"}, "method 'lora': r='4' does not fit: Input should be a valid integer"),
        ("lora", {"r": True}, "r=True does not fit"),
        ("lora", {"r": 4.0}, r"r=4\.0 does not fit"),
        ("lora", {"lora_alpha": "16"}, "lora_alpha='16' does not fit: Input should be a valid number"),
        ("lora", {"use_rslora": 1}, "use_rslora=1 does not fit: Input should be a valid boolean"),
        ("lora", {"target_modules": ["q", 3]}, r"target_modules=\['q', 3\] does not fit: Input should be a valid"),
        ("heterolora", {"shortcuts": "res1"}, "shortcuts='res1' does not fit"),
        ("prefix", {}, "method 'prefix': num_virtual_tokens=None: give the number of positions, at least 1"),
        ("prefix", {"num_virtual_tokens": 0}, "num_virtual_tokens=0"),
    ],
)
def test_options_that_do_not_exist_or_do_not_fit_are_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Method(name=name, **options)  # type: ignore[arg-type]


def test_what_peft_adds_to_a_list_is_not_in_the_recipe() -> None:
    method = Method.model_validate({"name": "lora", "target_modules": ["q_proj"], "modules_to_save": ["pooler"]})
    for given in (method.build("SEQ_CLS", seed=0), SimpleNamespace(**method.options)):
        given.modules_to_save.append("classifier")  # type: ignore[union-attr]
    assert method.options["modules_to_save"] == ["pooler"]


BY_RANK = {"granularity": "rank", "mode": "static"}


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("lora", {"plan": {}}, "method 'lora' has no option 'plan'"),
        (
            "heterolora",
            {"mode": "dynamic", "plan": {"halves": False}},
            r"method\.plan=\{'halves': False\}.*none is made",
        ),
        ("heterolora", {**BY_RANK, "plan": {"halfs": False}}, "no option of a rank plan, did you mean 'halves'"),
        ("heterolora", {**BY_RANK, "plan": {"halves": "no"}}, "plan: halves='no' must be a bool"),
        ("heterolora", {**BY_RANK, "plan": {"breadth": 2}}, r"breadth=2.* \[0, 1\]"),
        ("heterolora", {**BY_RANK, "plan": ["halves"]}, "must be a mapping of options"),
        ("heterolora", {**BY_RANK, "plan": {"step_time": 3}}, "step_time"),
    ],
)
def test_options_of_a_plan_are_checked_with_the_recipe(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Method(name=name, **options)  # type: ignore[arg-type]


def test_a_recipe_that_does_not_say_what_is_chosen_gets_it_written_out() -> None:
    plain = Method.model_validate({"name": "heterolora", "budget": 500, "plan": {"halves": False}})
    assert plain.model_dump() == {"name": "heterolora", "budget": 500, "plan": {"halves": False}, **BY_RANK}
    built = plain.build("SEQ_CLS", seed=0)
    assert (built.mode, built.granularity) == ("static", "rank")  # type: ignore[union-attr]
    for said in ({"mode": "dynamic"}, {"mode": "off"}, {"granularity": "path"}, {"granularity": "rank"}):
        assert Method.model_validate({"name": "heterolora", **said}).options == said
    assert Method(name="lor2c").options == {}


def test_a_kept_recipe_means_what_it_meant() -> None:
    """Up to version 0.1 a search of whole paths, again and again, was what a recipe did not have to say."""
    kept = {"method": {"name": "heterolora", "budget": 0.5}, "seed": 3}
    assert as_kept(kept) == {"method": {**kept["method"], "mode": "dynamic"}, "seed": 3}  # type: ignore[dict-item]
    others: list[Any] = [{"name": "heterolora", "mode": "static"}, {"name": "lora"}, None, [], "x"]
    assert [as_kept({"method": other}) for other in others] == [{"method": other} for other in others]
    damaged: list[Any] = [{}, None, [], "x"]
    assert [as_kept(each) for each in damaged] == damaged


def test_options_of_a_plan_are_no_field_of_the_config() -> None:
    plan = {"halves": False, "head_warmup": 3}
    method = Method.model_validate({"name": "heterolora", **BY_RANK, "plan": plan})
    assert method.plan == plan
    assert method.build("SEQ_CLS", seed=0).granularity == "rank"  # type: ignore[union-attr]
    assert Method(name="heterolora").plan is None
    assert Method.model_validate(method.model_dump()) == method


def test_an_alpha_may_be_any_number_and_targets_a_text_or_a_list() -> None:
    for options in (
        {"lora_alpha": 2.5},
        {"lora_alpha": 2},
        {"target_modules": "all-linear"},
        {"target_modules": ["q"]},
    ):
        config = Method(name="lora", **options).build("CAUSAL_LM", seed=0)
        for key, value in options.items():
            found = getattr(config, key)
            assert found == (set(value) if isinstance(value, list) else value)


def test_a_start_may_be_whatever_peft_takes() -> None:
    for start in (True, False, "pissa"):
        method = Method(name="lora", init_lora_weights=start)  # type: ignore[call-arg]
        assert method.build("SEQ_CLS", seed=0).init_lora_weights == start  # type: ignore[union-attr]


def test_the_rank_that_dylora_is_evaluated_at_is_no_field_of_its_config() -> None:
    method = Method(name="dylora", r=8, eval_rank=2)  # type: ignore[call-arg]
    assert method.eval_rank == 2
    assert method.build("SEQ_CLS", seed=0).r == 8  # type: ignore[union-attr]
    assert Method(name="dylora").eval_rank is None


@pytest.mark.parametrize(
    ("options", "steps"), [({}, 2), ({"tinit": 3}, 5), ({"tinit": 3, "tfinal": 4}, 9), ({"tfinal": 1}, 3)]
)
def test_adalora_gets_a_length_that_its_own_checks_take(options: dict[str, int], steps: int) -> None:
    config = Method(name="adalora", **options).build("SEQ_CLS", seed=0)
    assert config.total_step == steps  # type: ignore[union-attr]


def test_a_schedule_that_takes_no_rank_away_is_refused_with_the_config() -> None:
    method = Method(name="adalora", init_r=4, target_r=4)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="target_r=4 must be below init_r=4"):
        method.build("SEQ_CLS", seed=0)


def test_what_is_given_out_is_a_copy() -> None:
    method = Method(name="lora", r=4)  # type: ignore[call-arg]
    method.options["r"] = 8
    assert method.options == {"r": 4}
    assert Method.model_validate(method.model_dump()) == method
