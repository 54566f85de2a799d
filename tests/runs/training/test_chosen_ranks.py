"""A run whose ranks were chosen before its first step goes on with those ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.runs.training.test_resuming import CONSTANT, same, stopped

from rankwise.runs.recipes.recipe import Recipe
from rankwise.runs.training.train import train

Make = Callable[..., Recipe]


def test_ranks_that_are_chosen_stay_in_a_run_that_goes_on(make: Make, tmp_path: Path) -> None:
    def recipe(steps: int) -> Recipe:
        ranks = {"mode": "static", "granularity": "rank", "budget": 300, "score_batches": 4, "plan": {"halves": False}}
        shape = {"max_steps": steps, "batch_size": 4, **CONSTANT}
        return make("heterolora", select="last", training=shape, method={**ranks, "search_every": None})

    checkpoints = stopped(recipe(4), tmp_path / "parts", 3)
    train(recipe(4), tmp_path / "parts", resume=True)
    longer = train(recipe(8), tmp_path / "parts", resume=True)
    straight = train(recipe(8), tmp_path / "straight")
    assert longer.metrics["metrics"] == straight.metrics["metrics"]
    assert same(tmp_path / "parts", tmp_path / "straight")
    for checkpoint in checkpoints.glob("checkpoint-*"):
        (checkpoint / "search_history.jsonl").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-8: search_history\.jsonl is missing"):
        train(recipe(12), tmp_path / "parts", resume=True)
