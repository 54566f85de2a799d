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
from rankwise.tasks import TASKS

BYTES = 4  # adapters, gradients and AdamW's two moments are float32
SEARCH_ONLY = ("budget", "budget_unit", "window_bytes")
Sizes = dict[str, Any]


def plan_recipe(recipe: Recipe) -> Sizes:
    """Count what a recipe would train and hold, from the model's config alone.

    Raises:
        ValueError: The model's config can't be had, or the method does not fit the model.
    """
    task = TASKS[recipe.data.task] if recipe.data.task else None
    causal = task is not None and task.kind == "causal"
    task_type = "CAUSAL_LM" if causal else "SEQ_CLS"
    # Files of the user's own: the number of classes is in the data, which a plan does not read.
    labels = {} if causal or task is None else {"num_labels": len(task.label_names) if task.kind != "choice" else 1}
    with quiet():
        config = load_config(recipe.model, **{name: max(count, 1) for name, count in labels.items()})
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
