from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from safetensors.torch import load_file

from rankwise.report import read_history
from rankwise.runs.folder import RunFolder
from rankwise.runs.recipes.recipe import Recipe
from rankwise.runs.score import score
from rankwise.runs.training.train import train

Make = Callable[..., Recipe]


@pytest.mark.parametrize("task", ["mrpc", "copa", "text"])
def test_scores_and_choice_of_the_first_search(make: Make, task: str) -> None:
    found = score(make("heterolora", task, method={"warmup_searches": 2}))
    assert len(found.scores) == len(found.costs) == 4
    assert found.record["how"] == "probe"
    assert found.record["proxy"] == "grad_norm"
    ranked = sorted(found.scores, key=lambda name: -(found.scores[name] or 0.0))
    assert set(found.chosen) == set(ranked[:2])
    assert score(make("heterolora", task)).scores == found.scores


@pytest.mark.parametrize("changes", [{}, {"training": {"bf16": True}}, {"method": {"score_batches": 2}}])
def test_it_is_the_first_search_of_the_run(make: Make, tmp_path: Path, changes: dict[str, Any]) -> None:
    recipe = make("heterolora", **changes)
    train(recipe, tmp_path / "run")
    first = read_history(RunFolder(tmp_path / "run").history)[0]
    found = score(recipe)
    assert found.record.scores == first.scores
    assert found.chosen == first.chosen


def test_only_a_search_can_be_scored(make: Make) -> None:
    with pytest.raises(ValueError, match=r"method\.name='lora' has no paths to choose among"):
        score(make("lora"))


def test_the_choice_can_be_written_as_an_untrained_plain_lora(make: Make, tmp_path: Path) -> None:
    found = score(make("heterolora"), out=tmp_path)
    config = LoraConfig.from_pretrained(str(tmp_path))
    assert config.peft_type == "LORA"
    assert len(config.target_modules or ()) == len(found.chosen)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert not any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
    assert all(tensor.any() for name, tensor in tensors.items() if "lora_A" in name)
    with pytest.raises(ValueError, match="holds an adapter already"):
        score(make("heterolora"), out=tmp_path)
