"""Static HeteroLoRA as a planner: a plain LoRA on the paths that a score chooses."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from peft import LoraConfig, PeftModel
from torch import nn

from rankwise.configs.heterolora import HeteroLoraConfig
from rankwise.configs.path import PathConfig
from rankwise.errors import called, check_choice
from rankwise.fields import plain
from rankwise.method.conversion import converted, refuse_converted
from rankwise.method.export import plain_config
from rankwise.method.heads import forgotten_heads, inside_heads
from rankwise.method.targets import all_linear
from rankwise.paths.path_set import has_adapter, path_set
from rankwise.planning.candidates import EVERY, left_out, on_base, with_candidates
from rankwise.planning.rank_plan import check_not_saved
from rankwise.planning.ranks import rank_plan
from rankwise.rules.budget import fraction_of, why_unspent
from rankwise.scores.probe import Batch, ComputeLoss, score_paths

logger = logging.getLogger(__name__)
INSTEAD_OF_EXPERTS = (
    "leave them out of target_modules, or have them in rankwise.HeteroLoraConfig(mode='off', target_modules=[...]), or "
    "in a plan of ranks that is built with rankwise.rank_plan(...).to_config()"
)


def plan_lora(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    budget: float | int = 0.25,
    granularity: str | None = None,
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

    By rank it is ``rankwise.rank_plan``, which has more options and says more. By path it is static HeteroLoRA (arXiv
    2406.14956, section 3.2), which gives a path its whole rank or nothing. On three of our four tasks that ended above
    uniform LoRA; a plan by rank ended below it or could not be told from it, each at its own rate, but for the test
    questions of TREC with a rank for every projection, in one study of two (docs/where-it-pays.md). The model is as
    before afterwards.

    Args:
        model: A base model, without adapters.
        batches: Training batches with labels to score on; none for ``constant``, ``random`` and ``synflow``.
        budget: A fraction of the candidates' parameters at rank ``r``, or a count.
        granularity: ``"rank"`` or ``"path"``; if left out ``"rank"``, unless ``proxy``, ``score_on`` or
            ``budget_unit`` ask for what only whole paths have.
        proxy: The score; ``"grad_norm"`` by path and ``"newton"``, the only one, by rank.
        score_on: ``"weight"`` or ``"factors"``.
        budget_unit: ``"parameters"`` or ``"paths"``.
        target_modules: The candidates, as in ``LoraConfig``; if left out PEFT's default for the family, by rank all
            projections but the head. Of all projections those are left out that PEFT takes for experts.
        r: Rank of each path; by rank what a fraction is one of, and ``lora_alpha / r`` is the scale of every path.
        lora_alpha: Alpha of each path.
        lora_dropout: Dropout of each path.
        task_type: PEFT's task type, for the returned config.
        compute_loss: Called with (model, batch), for losses that the model does not compute itself; the batch is on
            the model's device.
        seed: Seeds the draws and initial values.

    Raises:
        ValueError: A value is outside what is allowed, there are no batches where they are needed, nothing fits into
            the budget, or a candidate that was named is one that PEFT takes for experts.
    """
    budget, r = plain(budget), plain(r)
    by_path = (proxy or "newton", score_on, budget_unit) != ("newton", "weight", "parameters")
    granularity = granularity or ("path" if by_path else "rank")
    check_choice("granularity", granularity, ("path", "rank"))
    if granularity == "rank":
        _check_by_rank(proxy, score_on, budget_unit, r, lora_alpha)
        parameters = _count_of(budget, model, target_modules, r)
        with called("rankwise.rank_plan"):  # which has the options that an error may ask for
            made = rank_plan(
                model,
                batches,
                budget=parameters,
                scale=lora_alpha / r,
                target_modules=target_modules,
                compute_loss=compute_loss,
                seed=seed,
            )
        return made.to_lora_config(task_type=task_type, lora_dropout=lora_dropout)
    if has_adapter(model):
        raise ValueError(
            "plan_lora() plans for a base model, and this one has an adapter: give the model without it, or score the "
            "adapter's own paths with rankwise.score_paths(model, batches)"
        )
    config = HeteroLoraConfig(  # without the task type, for which PEFT would replace the head by a copy
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=_all_plain(model) if target_modules == "all-linear" else target_modules,
        budget=budget,
        budget_unit=budget_unit,
        exclude_modules=inside_heads(model) or None,
        proxy=proxy or "grad_norm",
        score_on=score_on,
        mode="off",  # nothing is trained, so no first allocation has to fit
        seed=seed,
    )
    modules, others = _chosen_modules(model, batches, config, compute_loss)
    if not modules:
        raise ValueError(f"budget={budget!r} leaves room for no path of r={r}: raise the budget or lower r")
    check_not_saved(modules, task_type, None)
    config.task_type, config.exclude_modules = task_type, None
    config.modules_to_save = forgotten_heads(model, candidates=[*modules, *others]) or None
    return plain_config(config, modules, others, r=r, lora_alpha=lora_alpha)


def _all_plain(model: nn.Module) -> list[str]:
    """Return all projections that plain LoRA can be on."""
    without = left_out(model, "linear", "all-linear")
    return [name for name in all_linear(model) if name not in without]


def _chosen_modules(
    model: nn.Module, batches: Iterable[Batch], config: HeteroLoraConfig, compute_loss: ComputeLoss | None
) -> tuple[list[str], list[str]]:
    """Score a base model's candidates; return the modules of those that the budget is spent on, and other modules."""
    policy = config.switching()
    with on_base(model, config) as wrapped:
        paths = path_set(wrapped)
        _check_plain(wrapped)
        values = score_paths(
            wrapped,
            batches,
            proxy=config.proxy,
            score_on=config.score_on,
            compute_loss=compute_loss,
            seed=config.seed,
        )
        costs = paths.costs()
        chosen = policy.choose(values, costs, 0) or set()
        unspent = why_unspent(chosen, policy.prices(costs), policy.limit(costs))
        modules = [path.module for name, path in paths.paths.items() if name in chosen]
        others = [*(path.module for path in paths.resident), *paths.lookalikes]
    if unspent:
        logger.info("plan_lora: %s", unspent)
    return modules, others


def _count_of(budget: Any, model: nn.Module, target_modules: Any, r: int) -> Any:
    """Return a fraction of the candidates' parameters at rank ``r`` as a count, and refuse what was named in vain."""
    fraction = isinstance(budget, float)
    if fraction and not 0 < budget <= 1:
        raise ValueError(
            f"budget={budget!r} must be above 0 and at most 1, a fraction of the candidates' parameters at r={r}, or "
            "a number of parameters (int)"
        )
    if not fraction and target_modules in EVERY:
        return budget
    with with_candidates(model, "linear", target_modules, seed=0) as wrapped:
        _check_plain(wrapped)
        return fraction_of(budget, r * sum(path_set(wrapped).costs().values())) if fraction else budget


def _check_plain(wrapped: PeftModel) -> None:
    """Refuse candidates that plain LoRA can't be on, before any is scored."""
    paths = path_set(wrapped)
    modules = [path.module for path in paths.resident]
    refuse_converted(converted(wrapped.get_base_model(), modules, paths.lookalikes), INSTEAD_OF_EXPERTS)


def _check_by_rank(proxy: str | None, score_on: str, budget_unit: str, r: int, lora_alpha: float) -> None:
    """Refuse what only whole paths have, and what no scale can be taken from."""
    if isinstance(r, bool) or not isinstance(r, int) or r < 1:
        raise ValueError(f"r={r!r} must be a whole number of at least 1: lora_alpha / r is the scale of every path")
    PathConfig.check_alpha("lora_alpha", lora_alpha)
    given = {"proxy": (proxy or "newton", "newton"), "score_on": (score_on, "weight")}
    given["budget_unit"] = (budget_unit, "parameters")
    for name, (value, needed) in given.items():
        if value != needed:
            raise ValueError(
                f"{name}={value!r} goes by whole paths, and granularity='rank' needs {name}={needed!r}: leave it out, "
                "or use granularity='path'"
            )
