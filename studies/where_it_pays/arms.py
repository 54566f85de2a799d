"""The arms: which paths get which rank under a budget.

``q,v``, ``all-linear``
    ranks as equal as the budget allows on those projections; below one rank for each, rank 1 on random ones.
``layer``
    LoR2C: one rank in every block; below that, rank 1 in random blocks.
``grad_norm``
    components by falling ``sigma_j^2`` per parameter, ``sigma_j`` the singular values of the mean gradient ``G`` of
    each projection's weight: the published score (``|G|^2 = sum_j sigma_j^2``) by rank.
``everything``
    as ``all-linear``, on all projections and the block paths ``res1``, ``res2`` and ``layer``.
``newton``
    every path scored for itself by ``newton`` and switched on or off as a whole by the exact knapsack, at twice the
    rank that all could have (rank 1 at least), in the same whole space.
``joint-linear``, ``joint-whole``
    ``rankwise.rank_plan`` on the projections, and in the whole space.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import get_peft_model
from studies.where_it_pays.layout import Layout, even, greedy, spread
from studies.where_it_pays.training import KINDS, SCALE, Batch, Candidates, adapter_config
from torch import nn

import rankwise

ARMS = ("q,v", "all-linear", "layer", "everything", "grad_norm", "newton", "joint-linear", "joint-whole")
SPACES: dict[str, Any] = {"joint-linear": "linear", "joint-whole": ["linear", *KINDS]}
QUERY_VALUE = ("q_proj", "v_proj", "query", "value")


class Choice(NamedTuple):
    """The rank of each path, and what else is worth keeping about how it was found."""

    layout: Layout
    about: dict[str, Any]


def choose(
    arm: str,
    model: nn.Module,
    batches: Sequence[Batch],
    candidates: Candidates,
    *,
    budget: int,
    seed: int,
    options: Mapping[str, Any],
) -> Choice:
    """Return what an arm makes of a budget.

    Args:
        arm: Its name.
        model: The base model, as it is when training starts.
        batches: Training batches to score on; arms that don't score leave them alone.
        candidates: The model's paths.
        budget: Parameters that may be spent.
        seed: Of what is drawn.
        options: For ``rankwise.rank_plan``, in the arms that plan.

    Raises:
        ValueError: There is no such arm, or the budget is below its cheapest component.
    """
    generator = np.random.default_rng([seed, budget, zlib.crc32(arm.encode())])
    if arm == "q,v":
        layout = spread(candidates.only(*QUERY_VALUE), budget, generator, largest=candidates.largest)
    elif arm == "all-linear":
        layout = spread(candidates.only(), budget, generator, largest=candidates.largest)
    elif arm == "layer":
        costs = candidates.only("layer")
        layout = even(costs, budget, generator, largest=min(candidates.largest[name] for name in costs))
    elif arm == "everything":
        layout = spread(candidates.costs, budget, generator, largest=candidates.largest)
    elif arm == "grad_norm":
        layout = greedy(spectra(model, batches, candidates), candidates.only(), budget)
    elif arm == "newton":
        layout = whole_paths(model, batches, candidates, budget=budget, seed=seed)
    elif arm in SPACES:
        return planned(model, batches, candidates, budget=budget, seed=seed, space=SPACES[arm], options=options)
    else:
        raise ValueError(f"arm {arm!r} is not one of {', '.join(ARMS)}")
    return Choice(layout, {})


def planned(
    model: nn.Module,
    batches: Sequence[Batch],
    candidates: Candidates,
    *,
    budget: int,
    seed: int,
    space: Any,
    options: Mapping[str, Any],
) -> Choice:
    """Return the choice of ``rankwise.rank_plan``: no head warm-up, no fallback, unless the options ask."""
    given = {
        "target_modules": list(candidates.modules.values()),  # as in the other arms: without BERT's pooler
        "head_warmup": 0,
        "least_overlap": 0.0,
        **options,
    }
    plan = rankwise.rank_plan(model, batches, budget=budget, space=space, scale=SCALE, seed=seed, **given)
    about = {
        "overlap": plan.overlap,
        "kept": plan.kept,
        "breadth": plan.breadth,
        "predicted_gain": sum(pick.gain for pick in plan.picks),
        "loss_at_start": plan.loss,
        "plan_seconds": round(plan.seconds, 1),
        "warnings": list(plan.warnings),
    }
    if plan.step_share is not None:
        about["step_share"] = round(plan.step_share, 3)
    return Choice({name: rank for name, rank in plan.ranks.items() if rank}, about)


def whole_paths(
    model: nn.Module, batches: Sequence[Batch], candidates: Candidates, *, budget: int, seed: int
) -> Layout:
    """Return the paths that the exact knapsack takes by their own ``newton`` scores, all at one rank."""
    rank = max(1, 2 * budget // sum(candidates.costs.values()))
    layout = {name: min(rank, candidates.largest[name]) for name in candidates.costs}
    wrapped = get_peft_model(model, adapter_config(layout, candidates, seed=seed, task_type=None))
    try:
        scores = rankwise.score_paths(wrapped, batches, proxy="newton", seed=seed)
    finally:
        wrapped.unload()
        model.requires_grad_(True)
    costs = {name: rank * candidates.costs[name] for name, rank in layout.items()}
    chosen = rankwise.allocate(scores, costs, budget)
    return {name: rank for name, rank in layout.items() if name in chosen}


def spectra(model: nn.Module, batches: Sequence[Batch], candidates: Candidates) -> dict[str, list[float]]:
    """Return the squared singular values of every projection's mean gradient ``G`` (o x i), falling."""
    weights: dict[str, Any] = {name: model.get_submodule(module).weight for name, module in candidates.modules.items()}
    trains = {parameter: parameter.requires_grad for parameter in model.parameters()}
    was_training = model.training
    try:
        model.eval()
        for parameter in trains:
            parameter.requires_grad = False
        for weight in weights.values():
            weight.requires_grad = True
        sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for batch in batches:
            gradients = torch.autograd.grad(model(**batch).loss, list(weights.values()))
            for total, gradient in zip(sums.values(), gradients, strict=True):
                total += gradient
    finally:
        model.train(was_training)
        for parameter, value in trains.items():
            parameter.requires_grad = value
    return {name: torch.linalg.svdvals(total.double() / len(batches)).square().tolist() for name, total in sums.items()}
