from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rankwise.runs.recipes.recipe import Recipe
from rankwise.runs.sizes import plan_recipe
from rankwise.runs.training.train import train

Make = Callable[..., Recipe]


@pytest.mark.parametrize("method", ["heterolora", "lora", "full"])
@pytest.mark.parametrize("task", ["mrpc", "mnli", "copa", "text"])
def test_a_plan_is_what_training_finds(make: Make, tmp_path: Path, method: str, task: str) -> None:
    recipe = make(method, task, training={"max_steps": 2})
    planned = plan_recipe(recipe)
    found = train(recipe, tmp_path / "run").metrics["parameters"]
    assert planned["enabled"] == found["trainable"]
    assert planned["head"] == found["head"]
    ever_on = found.get("resident", found["trainable"])  # a dynamic search keeps the moments of what it switches off
    assert planned["optimizer_bytes"] == 8 * (ever_on + found["head"])


def test_targets_are_checked_without_weights(make: Make) -> None:
    with pytest.raises(ValueError, match="did you mean 'query'"):
        plan_recipe(make("lora", method={"target_modules": ["qurey"]}))
