from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
            "'lora', 'adalora', 'dylora', 'adapterdrop', 'prefix', 'full', did you mean 'lora'?",
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


def test_errors_of_a_file_name_it(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: {name: m}\n")
    with pytest.raises(ValueError, match=r"r\.yaml: data: missing"):
        load_recipe(tmp_path / "r.yaml")


def test_a_prefix_does_not_fit_checkpointing() -> None:
    prefix = {"method": {"name": "prefix", "num_virtual_tokens": 3}, "training": {"gradient_checkpointing": True}}
    with pytest.raises(ValueError, match=r"gradient_checkpointing runs blocks a second time, and method 'prefix'"):
        parse_recipe({**SMALL, **prefix})
