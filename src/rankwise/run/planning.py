"""The sizes of a run before anything is spent: built on the meta device, without weights or data."""

from __future__ import annotations

from typing import Any

import torch
from peft import get_peft_model

import rankwise
from rankwise.run.models import HEADS, check_targets, load_config, model_class
from rankwise.run.progress import quiet
from rankwise.run.recipe import Recipe
from rankwise.tasks import TASKS

BYTES = 4  # adapters, gradients and AdamW's two moments are float32
Plan = dict[str, Any]


def plan_recipe(recipe: Recipe) -> Plan:
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
        sizes: Plan = {"method": recipe.method.name, "model": recipe.model.name}
        if isinstance(method, rankwise.HeteroLoraConfig):
            return sizes | rankwise.plan(config, method).to_dict()
        with torch.device("meta"):
            model = model_class(task_type).from_config(config)
        base = sum(p.numel() for p in model.parameters())
        if method is not None:
            check_targets(model, method.target_modules)
            model = get_peft_model(model, method, low_cpu_mem_usage=True)
    learnt = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    head = sum(count for name, count in learnt.items() if {"modules_to_save", *HEADS} & set(name.split(".")))
    trained = sum(learnt.values())
    return sizes | {
        "enabled": trained - head,
        "head": head,
        "base": base - head,
        "optimizer_bytes": 2 * BYTES * trained,
        "gradient_bytes": BYTES * trained,
    }
