"""What a search would cost, and what it would choose, before anything is spent."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from rankwise.allocation.allocator import head_parameters
from rankwise.allocation.budget import resolve_budget, why_unspent
from rankwise.allocation.policy import Policy
from rankwise.config import HeteroLoraConfig
from rankwise.errors import check_choice
from rankwise.export import plain_config
from rankwise.path_config import PathConfig
from rankwise.paths.path_set import PathSet, has_adapter, path_set
from rankwise.rank_planning import rank_plan
from rankwise.scores.probe import Batch, ComputeLoss, score_paths
from rankwise.scores.statistics import AUTO_COLUMNS, EXACT_BYTES

logger = logging.getLogger(__name__)
AUTO_CLASSES: dict[str | None, Any] = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
}
BYTES = 4  # adapters and their optimizer states are float32


@dataclass(frozen=True)
class Plan:
    """Sizes of a search.

    Args:
        candidates: Number of paths.
        resident: Parameters of all of them.
        enabled: Parameters that train; before training, the most that the budget allows.
        contributing: Parameters whose output is added, trained or frozen.
        frozen: Parameters that contribute without training.
        head: Parameters that train beside the paths.
        base: Parameters of the frozen model.
        budget: The limit, in ``budget_unit``.
        budget_unit: ``"parameters"`` or ``"paths"``.
        optimizer_bytes: AdamW's two moments of what trains, or ever may have in a dynamic search, in float32.
        gradient_bytes: Gradients of what trains, in float32.
        window_bytes: The largest sums held while scores are collected.
        flops_per_token: Forward FLOPs per token that the enabled paths add: two per parameter.
    """

    candidates: int
    resident: int
    enabled: int
    contributing: int
    frozen: int
    head: int
    base: int
    budget: int
    budget_unit: str
    optimizer_bytes: int
    gradient_bytes: int
    window_bytes: int
    flops_per_token: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary."""
        return asdict(self)


def plan(model_or_config: nn.Module | PreTrainedConfig, config: PathConfig | None = None) -> Plan:
    """Return the sizes of a search: of one under way, or of one that a config would make.

    The latter is built without memory (on the meta device), so it works for models that don't fit.

    Args:
        model_or_config: A model with rankwise paths (no ``config``), or a transformers model or config to plan for.
        config: What to plan.

    Raises:
        ValueError: Without a config: the model has no rankwise paths. With one: it does not fit the model.
    """
    if config is None:
        if not isinstance(model_or_config, nn.Module):
            raise ValueError("plan(config) of a transformers config needs the HeteroLoraConfig to plan for")
        return _sizes(model_or_config, path_set(model_or_config))
    wrapped = get_peft_model(_hollow(model_or_config, config), copy.deepcopy(config), low_cpu_mem_usage=True)
    return _sizes(wrapped, path_set(wrapped), planned=True)


def _hollow(model_or_config: nn.Module | PreTrainedConfig, config: PathConfig) -> PreTrainedModel:
    with torch.device("meta"):
        if isinstance(model_or_config, PreTrainedModel):
            return type(model_or_config)(copy.deepcopy(model_or_config.config))
        if isinstance(model_or_config, PreTrainedConfig):
            make = AUTO_CLASSES.get(config.task_type, AutoModel)
            hollow: PreTrainedModel = make.from_config(copy.deepcopy(model_or_config))
            return hollow
    raise ValueError(
        "plan() takes a transformers model or config, or a model with rankwise paths, got "
        f"{type(model_or_config).__name__}"
    )


def _sizes(model: nn.Module, paths: PathSet, *, planned: bool = False) -> Plan:
    config, costs, counts = paths.config, paths.costs(), paths.counts()
    limit = resolve_budget(config.budget, costs, config.budget_unit) if config.mode != "off" else counts["resident"]
    if planned and config.mode != "off":
        most = sum(sorted(costs.values(), reverse=True)[:limit]) if config.budget_unit == "paths" else limit
        counts["enabled"] = counts["contributing"] = min(most, counts["resident"])
    head = head_parameters(model, paths)
    trained = counts["enabled"] + head
    # A path that is switched off keeps its moments unless it is reset, and each may have been on once.
    moments = counts["resident"] + head if config.mode == "dynamic" and config.on_disable != "reset" else trained
    return Plan(
        candidates=len(costs),
        **counts,
        head=head,
        base=sum(p.numel() for p in model.parameters()) - counts["resident"] - head,
        budget=limit,
        budget_unit=config.budget_unit,
        optimizer_bytes=2 * BYTES * moments,
        gradient_bytes=BYTES * trained,
        window_bytes=_window_bytes(paths),
        flops_per_token=2 * counts["contributing"],
    )


def _window_bytes(paths: PathSet) -> int:
    config, own = paths.config, paths.paths.values()
    if config.mode == "off" or config.proxy not in ("grad_norm", "snip"):
        return 0
    if config.score_on == "factors":
        return BYTES * sum(path.num_parameters for path in own)
    exact = BYTES * sum(path.lora_B.shape[0] * path.lora_A.shape[1] for path in own)
    columns = config.sketch if config.sketch != "auto" else (None if exact <= EXACT_BYTES else AUTO_COLUMNS)
    if config.proxy == "snip" or columns is None:
        return exact
    return BYTES * sum(path.lora_B.shape[0] for path in own) * int(columns)


def plan_lora(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    budget: float | int = 0.25,
    granularity: str = "path",
    proxy: str | None = None,
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

    By path this is static HeteroLoRA (arXiv 2406.14956, section 3.2), which gives a path its whole rank or nothing, for
    any tool that takes a ``LoraConfig``. By rank it is ``rankwise.rank_plan``, which has more options and says more.
    The model is as before afterwards.

    Args:
        model: A base model, without adapters.
        batches: Training batches with labels to score on; none for ``constant``, ``random`` and ``synflow``.
        budget: A fraction of the candidates' parameters, or a count; by rank always a count.
        granularity: ``"path"`` or ``"rank"``.
        proxy: The score; ``"grad_norm"`` by path and ``"newton"``, the only one, by rank.
        score_on: ``"weight"`` or ``"factors"``.
        budget_unit: ``"parameters"`` or ``"paths"``.
        target_modules: The candidates, as in ``LoraConfig``; if left out PEFT's default for the family, by rank all
            projections but the head.
        r: Rank of each path; by rank only ``lora_alpha / r`` counts, the scale of every path.
        lora_alpha: Alpha of each path.
        lora_dropout: Dropout of each path.
        task_type: PEFT's task type, for the returned config.
        compute_loss: Called with (model, batch), for losses that the model does not compute itself.
        seed: Seeds the draws and initial values.

    Raises:
        ValueError: A value is outside what is allowed, there are no batches where they are needed, or nothing fits
            into the budget.
    """
    check_choice("granularity", granularity, ("path", "rank"))
    if granularity == "rank":
        _check_by_rank(budget, proxy, score_on, budget_unit)
        made = rank_plan(
            model,
            batches,
            budget=int(budget),
            scale=lora_alpha / r,
            target_modules=target_modules,
            compute_loss=compute_loss,
            seed=seed,
        )
        return made.to_lora_config(task_type=task_type, lora_dropout=lora_dropout)
    proxy = proxy or "grad_norm"
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
        costs = paths.costs()
        chosen = policy.choose(values, costs, 0) or set()
        prices = costs if budget_unit == "parameters" else dict.fromkeys(costs, 1)
        unspent = why_unspent(chosen, prices, resolve_budget(budget, costs, budget_unit))
        modules = [path.module for name, path in paths.paths.items() if name in chosen]
    finally:
        wrapped.unload()
        for name, parameter in model.named_parameters():
            parameter.requires_grad = trainable[name]
    if not modules:
        raise ValueError(f"budget={budget!r} leaves room for no path of r={r}: raise the budget or lower r")
    if unspent:
        logger.info("plan_lora: %s", unspent)
    config.task_type = task_type
    return plain_config(config, modules, r=r, lora_alpha=lora_alpha)


def _check_by_rank(budget: float | int, proxy: str | None, score_on: str, budget_unit: str) -> None:
    """Refuse what only whole paths have."""
    if isinstance(budget, float):
        raise ValueError(
            f"budget={budget!r} is a fraction of whole paths; granularity='rank' needs a number of parameters (int)"
        )
    given = {"proxy": (proxy or "newton", "newton"), "score_on": (score_on, "weight")}
    given["budget_unit"] = (budget_unit, "parameters")
    for name, (value, needed) in given.items():
        if value != needed:
            raise ValueError(
                f"{name}={value!r} goes by whole paths, and granularity='rank' needs {name}={needed!r}: leave it out, "
                "or use granularity='path'"
            )
