"""The arms: which paths get which rank under a budget.

``q,v``, ``all-linear``
    ranks as equal as the budget allows on those projections; below one rank for each, rank 1 on random ones.
``layer``
    LoR2C: one rank in every block; below that, rank 1 in random blocks.
``grad_norm``
    components by falling ``sigma_j^2`` per parameter, ``sigma_j`` the singular values of the mean gradient ``G`` of
    each projection's weight: the published score (``|G|^2 = sum_j sigma_j^2``) by rank.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from studies.where_it_pays.layout import Layout, even, greedy, spread
from studies.where_it_pays.training import Batch, Candidates, adapter_config
from torch import nn

ARMS = ("q,v", "all-linear", "layer", "grad_norm")
QUERY_VALUE = ("q_proj", "v_proj", "query", "value")


class Choice(NamedTuple):
    """A config to build, the ranks in it, and what else is worth keeping about how they were found."""

    config: Any
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
    task_type: str,
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
        task_type: PEFT's.
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
    elif arm == "grad_norm":
        values = spectra(model, batches, candidates)
        layout = greedy(values, candidates.only(), budget)
    else:
        raise ValueError(f"arm {arm!r} is not one of {', '.join(ARMS)}")
    return Choice(adapter_config(layout, candidates, seed=seed, task_type=task_type), layout, {})


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
