"""The sizes of a run before anything is spent: built on the meta device, without weights or data."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model

import rankwise
from rankwise.baselines.adalora import layers as adalora_layers
from rankwise.configs.path import PathConfig
from rankwise.runs.building.models import check_named, is_head, load_config, model_class
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.recipe import Recipe
from rankwise.tasks import TASKS, Task
from rankwise.tasks.labels import describe_files
from rankwise.tasks.missing import without_missing
from rankwise.tasks.read import read_splits

BYTES = 4  # adapters, gradients and AdamW's two moments are float32
SEARCH_ONLY = ("budget", "budget_unit", "window_bytes")
Sizes = dict[str, Any]


def kind_of(recipe: Recipe) -> str:
    """Return the kind of a recipe's task; of files of the user's own what the data says, if they are there."""
    if recipe.data.task is not None:
        return TASKS[recipe.data.task].kind
    return recipe.data.kind or (_own_task(recipe).kind if _is_here(recipe) else "classification")


def head_size(recipe: Recipe) -> dict[str, int]:
    """Return ``num_labels`` as the run gives it to the model; for a causal one, and where data is not here, nothing."""
    kind = kind_of(recipe)
    if kind == "causal":
        return {}
    if kind != "classification":
        return {"num_labels": 1}
    if recipe.data.task is not None:
        return {"num_labels": len(TASKS[recipe.data.task].label_names)}
    if recipe.data.labels is not None:
        return {"num_labels": len(recipe.data.labels)}
    return {"num_labels": len(_own_task(recipe).label_names)} if _is_here(recipe) else {}


def _is_here(recipe: Recipe) -> bool:
    return recipe.data.train_file is not None and recipe.data.train_file.is_file()


def _own_task(recipe: Recipe) -> Task:
    """Return the task that the user's files make."""
    data = recipe.data
    source = read_splits(data.model_copy(update={"validation_file": None, "test_file": None}), None)["train"]
    complete, _ = without_missing(
        source, data.text_columns, (data.label_column or "",), missing=data.missing or "refuse"
    )
    return describe_files(data, complete)


def plan_recipe(recipe: Recipe) -> Sizes:
    """Count what a recipe would train and hold, from the model's config, and the labels of data that is here.

    Raises:
        ValueError: The model's config can't be had, or the method does not fit the model.
    """
    task_type = "CAUSAL_LM" if kind_of(recipe) == "causal" else "SEQ_CLS"
    with quiet():
        config = load_config(recipe.model, **head_size(recipe))
        method = recipe.method.build(task_type, seed=recipe.seed)
        sizes: Sizes = {"method": recipe.method.name, "model": recipe.model.name}
        if isinstance(method, PathConfig):
            found = rankwise.plan(config, method).to_dict()
            unused = SEARCH_ONLY if method.policy() is None else ()
            return sizes | {name: value for name, value in found.items() if name not in unused}
        with torch.device("meta"):
            model = model_class(task_type).from_config(config)
        base = sum(p.numel() for p in model.parameters())
        if isinstance(method, LoraConfig):
            check_named(model, method.target_modules)
            method.init_lora_weights = True  # the others look at weights, and there are none
        if method is not None:
            model = get_peft_model(model, method, low_cpu_mem_usage=True)
        for layer in adalora_layers(model):
            layer.ranknum.requires_grad_(False)  # a constant, which PEFT forgets when it moves it to the meta device
    learnt = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    head = sum(count for name, count in learnt.items() if is_head(name))
    trained = sum(learnt.values())
    return sizes | {
        "enabled": trained - head,
        "head": head,
        "base": base - head,
        "optimizer_bytes": 2 * BYTES * trained,
        "gradient_bytes": BYTES * trained,
    }
