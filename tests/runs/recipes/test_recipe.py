from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

import rankwise
from rankwise.runs.recipes.reading import merged
from rankwise.runs.recipes.recipe import load_recipe, parse_recipe

SMALL: dict[str, Any] = {"model": {"name": "m"}, "data": {"task": "mrpc"}, "method": {"name": "lora", "r": 4}}


def wrong(**changes: Any) -> str:
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse_recipe(merged(SMALL, changes))
    return str(caught.value)


def test_defaults_are_written_out_and_read_back(tmp_path: Path) -> None:
    recipe = parse_recipe(merged(SMALL, {"training": {"learning_rate": 1e-5}, "data": {"data_dir": "somewhere"}}))
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "r.yaml") == recipe
    assert "batch_size: 32" in recipe.to_yaml()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modle": {}}, "modle: no such key, did you mean 'model'?"),
        (
            {"training": {"learning_rat": 1}},
            "training.learning_rat: no such key in training, did you mean 'learning_rate'?",
        ),
        ({"data": {"max_lenght": 1}}, "data.max_lenght: no such key in data, did you mean 'max_length'?"),
        ({"model": {"dropuot": 1}}, "model.dropuot: no such key in model, did you mean 'dropout'?"),
        ({"method": {"target_module": []}}, "'lora' has no option 'target_module', did you mean 'target_modules'?"),
        (
            {"method": {"name": "lroa"}},
            "'lora', 'adalora', 'dylora', 'adapterdrop', 'full', did you mean 'lora'?",
        ),
        ({"training": {"evaluate": "epok"}}, "is not one of 'epoch', 'steps', 'never', did you mean 'epoch'?"),
        ({"training": {"schedule": "linaer"}}, "did you mean 'linear'?"),
        ({"training": {"epochs": -1}}, "training.epochs=-1: input should be greater than 0"),
        ({"training": {"evaluate": "steps"}}, "give `every` with `steps`, only"),
        ({"training": {"evaluate": "never"}}, "or say select: last"),
        ({"data": {"dev_fraction": 0}}, "leaves no dev split"),
        ({"data": {"task": "mrcp"}}, "did you mean 'mrpc'?"),
        ({"model": {"dtype": "float8"}}, "is not one of 'auto', 'float32', 'bfloat16', 'float16'"),
        ({"method": {"task_type": "SEQ_CLS"}}, "has no option 'task_type'"),
    ],
)
def test_mistakes_are_corrected(changes: dict[str, Any], words: str) -> None:
    assert words in wrong(**changes)


def test_every_mistake_is_named_at_once() -> None:
    text = wrong(sede=1, training={"epoch": 3})
    assert "sede" in text
    assert "training.epoch" in text


def test_what_must_be_said() -> None:
    with pytest.raises(ValueError, match="data: missing; a recipe must say it"):
        parse_recipe({key: SMALL[key] for key in ("model", "method")})


def test_full_fine_tuning_takes_no_options() -> None:
    assert "method 'full' takes no options (given: r=4)" in wrong(method={"name": "full"})


def test_errors_of_a_file_name_it(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: {name: m}\n")
    with pytest.raises(ValueError, match=r"r\.yaml: data: missing"):
        load_recipe(tmp_path / "r.yaml")


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
