"""``rank_plan``: how much rank each path of a base model should get, before anything is trained."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from rankwise.candidates import with_candidates
from rankwise.distributed import check_same_everywhere
from rankwise.errors import check_choice
from rankwise.head_warmup import head_steps, warmed_head
from rankwise.paths.path_set import path_set
from rankwise.planned_ranks import Pick, RankPlan
from rankwise.rules.joint import Picks, choose_jointly, curvature_of
from rankwise.scores.components import DIRECTIONS
from rankwise.scores.curvature import drawn_loss
from rankwise.scores.likelihood import DrawLosses
from rankwise.scores.probe import Autocast, Batch, ComputeLoss, loss_in, model_loss, to_device, untouched
from rankwise.scores.signals import REDUCTIONS, Signal, collect_signals

LEAST_COMPONENTS, MOST_COMPONENTS = 8, 64
TINY = 1e-300  # a gain of zero is kept whole or not at all


def rank_plan(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    budget: int,
    space: str | Sequence[str] = "linear",
    scale: float = 2.0,
    damping: float = 1.0,
    directions: str = "adam",
    target_modules: Any = None,
    components: int | None = None,
    halves: bool = True,
    cross_validate: bool = False,
    least_overlap: float = 0.5,
    breadth: float = 0.0,
    head_warmup: int | None = None,
    keep_head: bool = False,
    reduction: str = "auto",
    compute_loss: ComputeLoss | None = None,
    draw_losses: DrawLosses | None = None,
    autocast: Autocast = nullcontext,
    seed: int = 0,
) -> RankPlan:
    """Plan the rank of every path of a base model under a budget, by what the loss is predicted to fall.

    Each path's matrix has as candidates the rank-one directions in which the gradient is largest; each has a slope
    ``lin`` and, with the others, a curvature ``q`` (see ``rankwise.scores.curvature``). They are chosen together,
    greedily by marginal gain per parameter (``rankwise.rules.joint``), so two that do the same are not both paid for.
    The rank of a path is how many of its components were chosen.

    Costs two passes over the batches. The model is as before afterwards: weights, gradients, generators, modes,
    buffers, flags. In distributed training every process gives its own batches and gets the same plan.

    Args:
        model: A base model, without adapters.
        batches: Training batches with labels; two dozen are enough where tried, six were not.
        budget: The most parameters the plan may have.
        space: ``"linear"`` (a plain LoRA comes out), ``"all"``, or a list of kinds.
        scale: ``alpha / r``, the same for every path; part of the config that comes out, not of the choice.
        damping: ``lambda`` of the joint choice, in mean curvatures.
        directions: ``"adam"`` takes components as an Adam-like optimizer's first step on ``B`` moves, ``"sgd"`` as
            singular vectors.
        target_modules: The linear candidates, as in ``LoraConfig``; all projections but the head if left out.
        components: How many directions each path offers; twice the uniform rank of the budget if left out, at least 8,
            at most 64.
        halves: Repeat the choice on each half of the batches and report how much the two share.
        cross_validate: Take directions from one half of the batches, slopes and curvature from the other.
        least_overlap: Where the halves share less, the data can't tell the paths apart and the plan is the uniform
            one; 0 never falls back.
        breadth: 0 goes by gain alone, 1 is the uniform plan; between, the plan shrinks towards it.
        head_warmup: Steps for which a classification head is trained alone first; twice the number of batches but at
            most 100 if left out, 0 for a head that is trained already. Language models have no such head.
        keep_head: Leave the head as trained by ``head_warmup``; else it is put back.
        reduction: Says that the loss is a ``"mean"`` or a ``"sum"`` over its terms; ``"auto"`` checks that it is the
            mean.
        compute_loss: Called with (model, batch), for losses that the model does not compute itself.
        draw_losses: For such losses; called with (model, batch, generator), returns each example's summed loss under
            labels drawn from the prediction, and the number of loss terms.
        autocast: Makes the context of each forward pass, for training in mixed precision.
        seed: Seeds the drawn labels and the sketches.

    Raises:
        ValueError: A value is out of range, the budget is below the cheapest component, the space matches nothing, the
            batches have no labels or too few examples, or the loss is not the mean over its terms.
    """
    began = time.perf_counter()
    check_choice("directions", directions, DIRECTIONS)
    check_choice("reduction", reduction, REDUCTIONS)
    given = list(batches)
    _check_numbers(budget, scale, components, least_overlap)
    _check_batches(given, halves or cross_validate)
    loss_of = loss_in(compute_loss or model_loss, autocast)
    steps = head_steps(model, given, head_warmup)
    with (
        warmed_head(model, given, loss_of, steps, keep=keep_head),
        with_candidates(model, space, target_modules, seed=seed) as wrapped,
        untouched(wrapped),
        torch.enable_grad(),
    ):
        wrapped.eval()
        paths = path_set(wrapped)
        costs = paths.costs()
        _check_budget(budget, costs)
        count = components or _components(budget, costs)
        draw_of = drawn_loss(draw_losses, autocast, to_device, seed)
        signals, losses = collect_signals(
            wrapped,
            paths,
            given,
            loss_of,
            draw_of,
            components=count,
            matched=directions,
            reduction=reduction,
            halves=halves,
            cross_validate=cross_validate,
            seed=seed,
        )
        modules = {name: path.module for name, path in paths.paths.items() if path.kind == "linear"}
        device = next(wrapped.parameters()).device
    chooser = _Chooser(costs, budget, damping)
    overlap = kept = None
    notes: list[str] = []
    if halves:
        overlap, kept = chooser.agreement(signals["first"], signals["second"], breadth)
        if overlap < least_overlap and breadth < 1.0:
            notes.append(
                f"the choices made on two halves of the {len(given)} batches share {overlap:.2f} of their cost, less "
                f"than {least_overlap}: the data can't tell the paths apart, so the plan is the uniform one. Give more "
                "batches, or least_overlap=0 to have the choice all the same"
            )
            breadth = 1.0
    picks = chooser.choose(signals["all"], breadth)
    ranks = chooser.ranks(signals["all"], picks)
    check_same_everywhere([f"{name}={rank}" for name, rank in ranks.items()], "the rank plan", device)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    names = list(costs)
    owners = signals["all"].owners
    return RankPlan(
        ranks=ranks,
        modules=modules,
        costs=costs,
        picks=tuple(
            Pick(names[owners[j]], gain, cost)
            for j, gain, cost in zip(picks.order, picks.marginals, picks.costs, strict=True)
        ),
        budget=budget,
        scale=scale,
        unspent_because=_unspent(picks, costs, owners),
        overlap=overlap,
        kept=kept,
        breadth=breadth,
        loss=float(np.mean(losses)),
        directions=directions,
        damping=damping,
        seconds=time.perf_counter() - began,
        passes=steps + len(given) + (len(given) if halves or not cross_validate else len(given) // 2),
        warnings=tuple(notes),
    )


def overlap_of(first: Mapping[str, int], second: Mapping[str, int], costs: Mapping[str, int]) -> float:
    """Return how much of their cost two choices share: ``sum c min(r1, r2) / max(sum c r1, sum c r2)``, 0 to 1.

    Args:
        first: The ranks of one.
        second: The ranks of the other, by the same names.
        costs: What one rank of each path costs.
    """
    shared = sum(costs[name] * min(rank, second[name]) for name, rank in first.items())
    whole = max(sum(costs[name] * rank for name, rank in ranks.items()) for ranks in (first, second))
    return shared / whole if whole else 1.0


@dataclass(frozen=True)
class _Chooser:
    """Makes choices from signals.

    Args:
        costs: What one rank of each path costs, by its name.
        budget: The largest total cost.
        damping: The damping.
    """

    costs: Mapping[str, int]
    budget: int
    damping: float

    def choose(self, signal: Signal, breadth: float, *, most: Sequence[int] | None = None) -> Picks:
        """Choose jointly; ``most`` limits the rank of each path."""
        prices = list(self.costs.values())
        return choose_jointly(
            signal.slopes,
            curvature_of(signal.examples, signal.terms),
            [prices[owner] for owner in signal.owners],
            self.budget,
            owners=signal.owners,
            damping=self.damping,
            breadth=breadth,
            most=most,
        )

    def ranks(self, signal: Signal, picks: Picks) -> dict[str, int]:
        """Return the rank of every path that a choice gives."""
        counts = np.bincount([signal.owners[j] for j in picks.order], minlength=len(self.costs))
        return {name: int(count) for name, count in zip(self.costs, counts, strict=True)}

    def agreement(self, first: Signal, second: Signal, breadth: float) -> tuple[float, float]:
        """Return the overlap of two halves' choices, and how much of its gain each keeps with the other's ranks."""
        picks = [self.choose(half, breadth) for half in (first, second)]
        ranks = [self.ranks(half, chosen) for half, chosen in zip((first, second), picks, strict=True)]
        kept = [
            sum(self.choose(half, breadth, most=list(other.values())).marginals) / max(sum(own.marginals), TINY)
            for half, own, other in zip((first, second), picks, ranks[::-1], strict=True)
        ]
        return overlap_of(ranks[0], ranks[1], self.costs), sum(kept) / len(kept)


def _components(budget: int, costs: Mapping[str, int]) -> int:
    uniform = math.ceil(budget / sum(costs.values()))
    return min(max(2 * uniform, LEAST_COMPONENTS), MOST_COMPONENTS)


def _unspent(picks: Picks, costs: Mapping[str, int], owners: Sequence[int]) -> str:
    if not picks.left:
        return ""
    if len(picks.order) == len(owners):
        return f"all {len(owners)} components that the paths offer are taken: more budget needs a larger components="
    names, taken = list(costs), set(picks.order)
    least = min(costs[names[owner]] for j, owner in enumerate(owners) if j not in taken)
    return f"one more rank costs at least {least} parameters"


def _check_numbers(budget: Any, scale: float, components: Any, least_overlap: float) -> None:
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise ValueError(f"budget={budget!r} must be a number of parameters, a whole number of at least 1")
    if not scale > 0:
        raise ValueError(f"scale={scale!r} must be positive: it is alpha / r of every path")
    if components is not None and (isinstance(components, bool) or not isinstance(components, int) or components < 1):
        raise ValueError(f"components={components!r} must be a whole number of at least 1, or None")
    if not 0.0 <= least_overlap <= 1.0:
        raise ValueError(f"least_overlap={least_overlap!r} must lie in [0, 1]; 0 never falls back")


def _check_batches(batches: Sequence[Batch], halved: bool) -> None:
    if not batches:
        raise ValueError("a rank plan needs training batches, got none")
    if halved and len(batches) < 2:
        raise ValueError(
            "halves and cross_validate need at least 2 batches, got 1: give more, or halves=False and "
            "cross_validate=False"
        )


def _check_budget(budget: int, costs: Mapping[str, int]) -> None:
    cheapest = min(costs, key=lambda name: costs[name])
    if budget < costs[cheapest]:
        raise ValueError(
            f"budget={budget} is below the cheapest component: one rank of {cheapest} costs {costs[cheapest]} "
            f"parameters, one rank of everything {sum(costs.values())}"
        )
