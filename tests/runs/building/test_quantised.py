"""LoRA on a quantised base: what is kept as it is, that it trains through, resumes and reloads."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from tests.runs.conftest import Make
from tests.runs.training.test_train import Fails, same, weights

from rankwise.runs.building.job import build
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.recipe import parse_recipe
from rankwise.runs.training.train import train

LORA = {"name": "lora", "target_modules": ["query", "value"]}


def recipe_of(**changes: Any) -> Any:
    return parse_recipe({"model": {"name": "m"}, "data": {"task": "mrpc"}, "method": LORA, **changes})


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"name": "full"}, r"model\.load_in='4bit' keeps the weights quantised and frozen"),
        ({**LORA, "init_lora_weights": "pissa"}, r"method\.init_lora_weights='pissa' changes the weights"),
    ],
)
def test_what_can_not_be_quantised_is_refused(method: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        recipe_of(model={"name": "m", "load_in": "4bit"}, method=method)
    with pytest.raises(ValueError, match="is not one of '4bit', '8bit', did you mean '4bit'"):
        recipe_of(model={"name": "m", "load_in": "4bits"})


def test_without_bitsandbytes_it_says_what_to_install(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else found(name))
    with quiet(), pytest.raises(ModuleNotFoundError, match=r"needs bitsandbytes: pip install 'rankwise\[quantised\]'"):
        build(make("lora", model={"load_in": "4bit"}))


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantised_base_trains_resumes_and_counts_its_weights(make: Make, tmp_path: Path, bits: str) -> None:
    pytest.importorskip("bitsandbytes", reason="comes with the extra 'quantised'")
    recipe = make("lora", model={"load_in": bits})
    whole = train(recipe, tmp_path / "whole").metrics
    plain = train(make("lora"), tmp_path / "plain").metrics
    assert whole["parameters"] == plain["parameters"]
    with pytest.raises(RuntimeError, match="cable pulled"):
        train(recipe, tmp_path / "parts", callbacks=[Fails(3)])
    resumed = train(recipe, tmp_path / "parts", resume=True).metrics
    assert resumed["metrics"] == whole["metrics"]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_the_gradient_passes_quantised_layers_also_after_an_evaluation(make: Make) -> None:
    pytest.importorskip("bitsandbytes", reason="comes with the extra 'quantised'")
    import torch

    with quiet():
        model = build(make("lora", model={"load_in": "4bit", "dropout": 0})).model
    ids = torch.randint(4, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    kinds = {name.rpartition(".")[2]: type(module).__name__ for name, module in model.named_modules()}
    assert kinds["base_layer"] == "Linear4bit"
    assert kinds["out_proj"] == "Linear"  # the head
    grads = []
    for _ in range(2):
        model.zero_grad()
        model.train()(input_ids=ids).logits.sum().backward()
        grads.append([p.grad.clone() for name, p in model.named_parameters() if "lora_B" in name and p.requires_grad])
        with torch.no_grad():
            model.eval()(input_ids=ids)
    assert len(grads[0]) == 4
    assert all(gradient.any() for gradient in grads[0])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
