"""A recipe that trains in a second: a tiny random model and made-up rows, for every method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankwise.runs.dryrun import stand_in
from rankwise.runs.recipes.reading import merged
from rankwise.runs.recipes.recipe import Recipe, parse_recipe

METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "lora": {"name": "lora", "r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]},
    "heterolora": {
        "name": "heterolora",
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.1,
        "target_modules": ["query", "value"],
        "mode": "dynamic",
        "budget": 0.5,
        "search_every": 2,
    },
    "lor2c": {"name": "lor2c", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "merges": 1, "edit_unit": "steps"},
    "adalora": {"name": "adalora", "init_r": 4, "target_r": 2, "tfinal": 2, "target_modules": ["query", "value"]},
    "dylora": {"name": "dylora", "r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]},
    "adapterdrop": {"name": "adapterdrop", "bottleneck": 4, "first_block": 1},
    "prefix": {"name": "prefix", "num_virtual_tokens": 3},
}
Make = Callable[..., Recipe]


def content(method: str, task: str = "mrpc") -> dict[str, Any]:
    """A recipe for RoBERTa as a file would say it, for LLaMA where something is to be generated."""
    causal = task in ("text", "instruction", "chat")
    options = METHODS[method]
    if causal and "target_modules" in options:
        options = {**options, "target_modules": ["q_proj", "v_proj"]}
    return {
        "model": {"name": "meta-llama/Llama-2-7b-hf" if causal else "FacebookAI/roberta-base"},
        "data": {"task": task, "train_file": "not-there"} if causal else {"task": task},
        "method": options,
        "training": {"learning_rate": 1e-2},
    }


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a recipe on stand-ins: ``make("lora", training={"max_steps": 6})``."""

    rooms: dict[tuple[str, str], dict[str, Any]] = {}

    def build(method: str = "lora", task: str = "mrpc", /, **changes: Any) -> Recipe:
        if (method, task) not in rooms:
            small = stand_in(parse_recipe(content(method, task)), tmp_path / f"room-{method}-{task}").to_dict()
            shape = {"max_steps": 6, "evaluate": "steps", "every": 2, "report_to": []}
            rooms[method, task] = merged(small, {"training": shape})
        return parse_recipe(merged(rooms[method, task], changes))

    return build
