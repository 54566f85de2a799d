"""The recipe's ``training.prefix_cache``: the run without it, and what it says."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file

from rankwise.runs.recipes.recipe import Recipe, parse_recipe
from rankwise.runs.training.train import train

Make = Callable[..., Recipe]
UPPER = {"layers_to_transform": [1], "lora_dropout": 0.0}


def recipe(make: Make, **training: Any) -> Recipe:
    shape = {"max_steps": -1, "epochs": 3, "evaluate": "epoch", "every": None, **training}
    return make("lora", model={"dropout": 0.0}, method=UPPER, training=shape)


def test_a_run_with_it_is_the_run_without_to_rounding(make: Make, tmp_path: Path) -> None:
    """Epochs draw their own batches, so a row's prefix may be rounded by the shape of another."""
    told = io.StringIO()
    train(recipe(make), tmp_path / "plain")
    console = Console(file=told, width=200)
    train(recipe(make, prefix_cache={"ram_mb": 0, "half": False}), tmp_path / "kept", console=console)
    assert "Prefix: the lowest 1 blocks run once per training row" in told.getvalue()
    hits = int(told.getvalue().partition("Prefix: left out of ")[2].split()[0])
    assert hits > 0
    assert [path for path in (tmp_path / "kept").iterdir() if path.name.startswith("prefix")] == []
    losses = [
        json.loads((tmp_path / name / "metrics.json").read_text())["metrics"]["last"]["validation"]["loss"]
        for name in ("plain", "kept")
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    weights = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("plain", "kept")]
    for key, tensor in weights[0].items():
        assert float((tensor - weights[1][key]).abs().max()) < 1e-4


def test_a_run_that_trains_at_the_bottom_is_refused_before_it_begins(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="something in block 0 trains"):
        train(make("lora", training={"prefix_cache": {}}), tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_packed_rows_and_a_kept_prefix_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"data\.packing joins training\.batch_size=4 of them anew"):
        parse_recipe(
            {
                "model": {"name": "m"},
                "data": {"task": "instruction", "data_dir": "d", "packing": True},
                "method": {"name": "lora", "target_modules": ["q_proj"]},
                "training": {"batch_size": 4, "prefix_cache": {}},
            }
        )
