"""What a search would cost, and what it would choose, before anything is spent."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import get_peft_model
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

from rankwise.configs.path import PathConfig
from rankwise.notebook import html_table
from rankwise.paths.path_set import PathSet, head_parameters, path_set
from rankwise.scores.statistics import AUTO_COLUMNS, EXACT_BYTES

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
        flops_per_token: Forward FLOPs per token that the contributing paths add: ``2 r (i + o)`` each.
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

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        rows = ((name, f"{value:,}" if isinstance(value, int) else value) for name, value in self.to_dict().items())
        return html_table(("", "size"), rows)


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
    policy = config.policy()
    limit, unit = (policy.limit(costs), policy.budget_unit) if policy else (counts["resident"], "parameters")
    if planned and policy:
        most = sum(sorted(costs.values(), reverse=True)[:limit]) if unit == "paths" else limit
        counts["enabled"] = counts["contributing"] = min(most, counts["resident"])
    head = head_parameters(model, paths)
    trained = counts["enabled"] + head
    # A path that is switched off keeps its moments unless it is reset, and each may have been on once.
    moments = counts["resident"] + head if config.moments_stay else trained
    return Plan(
        candidates=len(costs),
        **counts,
        head=head,
        base=sum(p.numel() for p in model.parameters()) - counts["resident"] - head,
        budget=limit,
        budget_unit=unit,
        optimizer_bytes=2 * BYTES * moments,
        gradient_bytes=BYTES * trained,
        window_bytes=_window_bytes(paths),
        flops_per_token=2 * (counts["contributing"] if planned and policy else _multiplications(paths)),
    )


def _multiplications(paths: PathSet) -> int:
    """Return ``r (i + o)`` of each contributing path; a shared ``A`` is multiplied by in every block."""
    return sum(p.numel() for path in paths.resident if path.contributing for p in path.parameters)


def _window_bytes(paths: PathSet) -> int:
    config, own = paths.config, paths.paths.values()
    if config.policy() is None or config.proxy not in ("grad_norm", "snip"):
        return 0
    if config.score_on == "factors":
        return BYTES * sum(path.num_parameters for path in own)
    exact = BYTES * sum(path.lora_B.shape[0] * path.lora_A.shape[1] for path in own)
    columns = config.sketch if config.sketch != "auto" else (None if exact <= EXACT_BYTES else AUTO_COLUMNS)
    if config.proxy == "snip" or columns is None:
        return exact
    return BYTES * sum(path.lora_B.shape[0] for path in own) * int(columns)
