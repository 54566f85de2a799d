"""Static HeteroLoRA as a planner: a plain LoRA on the paths that a score chooses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn

from rankwise.configs.heterolora import HeteroLoraConfig
from rankwise.method.export import plain_config
from rankwise.paths.path_set import has_adapter, path_set
from rankwise.rules.policy import Policy
from rankwise.scores.probe import Batch, ComputeLoss, score_paths


def plan_lora(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    budget: float | int = 0.25,
    proxy: str = "grad_norm",
    score_on: str = "weight",
    budget_unit: str = "parameters",
    target_modules: Any = None,
    r: int = 8,
    lora_alpha: int = 16,
    lora_dropout: float = 0.0,
    task_type: str | None = None,
    compute_loss: ComputeLoss | None = None,
    seed: int = 0,
) -> LoraConfig:
    """Plan a plain LoRA: score every candidate once, choose under the budget, and return PEFT's own config.

    This is static HeteroLoRA (arXiv 2406.14956, section 3.2) for any tool that takes a ``LoraConfig``. The model is as
    before afterwards.

    Args:
        model: A base model, without adapters.
        batches: Training batches with labels to score on; none for ``constant``, ``random`` and ``synflow``.
        budget: A fraction of the candidates' parameters, or a count.
        proxy: The score.
        score_on: ``"weight"`` or ``"factors"``.
        budget_unit: ``"parameters"`` or ``"paths"``.
        target_modules: The candidates, as in ``LoraConfig``; PEFT's default for the family if left out.
        r: Rank of each path.
        lora_alpha: Alpha of each path.
        lora_dropout: Dropout of each path.
        task_type: PEFT's task type, for the returned config.
        compute_loss: Called with (model, batch), for losses that the model does not compute itself.
        seed: Seeds the draws and initial values.

    Raises:
        ValueError: A value is outside what is allowed, there are no batches where they are needed, or nothing fits
            into the budget.
    """
    if has_adapter(model):
        raise ValueError(
            "plan_lora() plans for a base model, and this one has an adapter: give the model without it, or score the "
            "adapter's own paths with rankwise.score_paths(model, batches)"
        )
    config = HeteroLoraConfig(  # without the task type, for which PEFT would replace the head by a copy
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=target_modules,
        budget=budget,
        budget_unit=budget_unit,
        proxy=proxy,
        score_on=score_on,
        mode="off",  # nothing is trained, so no first allocation has to fit
        seed=seed,
    )
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    wrapped = get_peft_model(model, config)
    try:
        paths = path_set(wrapped)
        values = score_paths(wrapped, batches, proxy=proxy, score_on=score_on, compute_loss=compute_loss, seed=seed)
        policy = Policy(proxy, 0, budget, budget_unit, "combined", seed)
        chosen = policy.choose(values, paths.costs(), 0) or set()
        modules = [path.module for name, path in paths.paths.items() if name in chosen]
    finally:
        wrapped.unload()
        for name, parameter in model.named_parameters():
            parameter.requires_grad = trainable[name]
    if not modules:
        raise ValueError(f"budget={budget!r} leaves room for no path of r={r}: raise the budget or lower r")
    config.task_type = task_type
    return plain_config(config, modules, r=r, lora_alpha=lora_alpha)
