"""``rank_plan``: how much rank each path of a base model should get, before anything is trained."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from rankwise.configs.path import LARGEST
from rankwise.fields import plain
from rankwise.method.conversion import converted, taken_for_experts
from rankwise.method.heads import forgotten_heads
from rankwise.passes import work
from rankwise.paths.path_set import path_set
from rankwise.planning.candidates import left_out, with_candidates
from rankwise.planning.choosing import plan_paths
from rankwise.planning.head_warmup import head_steps, warmed_head
from rankwise.planning.options import Choice
from rankwise.planning.rank_plan import RankPlan
from rankwise.planning.step_time import StepTime
from rankwise.scores.curvature import drawn_loss
from rankwise.scores.likelihood import DrawLosses
from rankwise.scores.probe import (
    Autocast,
    Batch,
    ComputeLoss,
    check_weights,
    loss_in,
    model_loss,
    same_draws,
    untouched,
)

logger = logging.getLogger("rankwise")


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
    least_overlap: float = 0.0,
    breadth: float = 0.5,
    head_warmup: int | None = None,
    keep_head: bool = False,
    reduction: str = "auto",
    time_limit: float | None = None,
    prefix_cache: bool = False,
    step_time: StepTime | None = None,
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
        space: ``"linear"`` (a plain LoRA comes out, without what PEFT takes for experts), ``"all"``, or a list of
            kinds.
        scale: ``alpha / r``, the same for every path; part of the config that comes out, not of the choice.
        damping: ``lambda`` of the joint choice, in mean curvatures.
        directions: ``"adam"`` takes components as an Adam-like optimizer's first step on ``B`` moves, ``"sgd"`` as
            singular vectors.
        target_modules: The linear candidates, as in ``LoraConfig``; all projections but a head's
            (``rankwise.method.heads``) and what PEFT refuses (Mamba's ``out_proj``) if left out.
        components: How many directions each path offers; twice the uniform rank of the budget if left out (under a time
            limit, of the paths that have room together), at least 8, at most 64.
        halves: Repeat the choice on each half of the batches, and report how much of their cost the two share
            (``overlap``) and how much of its predicted gain a half keeps with the other's ranks (``kept``). Paths that
            stand in for each other lower the first and not the second; a low ``kept`` is warned of.
        cross_validate: Take directions from one half of the batches, slopes and curvature from the other.
        least_overlap: Where the halves share less, the plan is the uniform one; 0 never falls back.
        breadth: Spreads the ranks: a path's d-th rank has to bring ``d^(breadth / (1 - breadth))`` times what another
            path's first brings for the same parameters. 0 goes by predicted gain alone, 0.5 asks for d times as much, 1
            gives every path its d-th rank before any gets one more.
        head_warmup: Steps for which a classification head is trained alone first; twice the number of batches but at
            most 100 if left out, 0 for a head that is trained already. Language models have no such head.
        keep_head: Leave the head as trained by ``head_warmup``; else it is put back.
        reduction: Says that the loss is a ``"mean"`` or a ``"sum"`` over its terms; ``"auto"`` checks that it is the
            mean.
        time_limit: The most that a training step may take, in steps of uniform LoRA (one rank for all projections, or
            as many as the budget has): 0.6 for 60 %. What a path costs is then also how deep it pulls the backward
            pass, which is paid once; a step's parts are measured on the first batch. The one thing in a plan that a
            seed does not fix: ``step_time`` does.
        prefix_cache: Whether training will keep the frozen prefix (``rankwise.prefix.cache.prefix_cache``), so that
            blocks below the lowest path cost nothing.
        step_time: The parts of a step from another plan for the same model and space, ``plan.time.step``.
        compute_loss: Called with (model, batch), for losses that the model does not compute itself; the batch is on
            the model's device.
        draw_losses: For such losses; called with (model, batch, generator), returns each example's summed loss under
            labels drawn from the prediction, and the number of loss terms.
        autocast: Makes the context of each forward pass, for training in mixed precision.
        seed: Seeds the drawn labels and the sketches.

    Raises:
        ValueError: A value is out of range, the budget is below the cheapest component, the space matches nothing, the
            batches have no labels or too few examples, or the loss is not the mean over its terms.
    """
    choice = Choice(
        damping=damping,
        directions=directions,
        components=components,
        halves=halves,
        cross_validate=cross_validate,
        least_overlap=least_overlap,
        breadth=breadth,
        reduction=reduction,
        time_limit=time_limit,
        prefix_cache=prefix_cache,
        step_time=step_time,
        seed=seed,
    )
    budget, scale = _numbers(budget, scale)
    check_weights(model)
    given = _taken(batches, model)
    fewest = choice.check_batches(given, next(model.parameters()).device)
    loss_of = loss_in(compute_loss or model_loss, autocast)
    draw_of = drawn_loss(draw_losses, autocast, seed)
    rows = draw_losses is None  # else what counts as an example is the user's
    steps = head_steps(model, given[:fewest], head_warmup)
    left = left_out(model, space, target_modules)
    began = time.perf_counter()
    with (
        work("planning ranks", steps + 2 * len(given)),
        warmed_head(model, given, loss_of, steps, keep=keep_head),
        with_candidates(model, space, target_modules, seed=seed) as wrapped,
        untouched(wrapped),
    ):
        made = _plan(
            wrapped, left, given, loss_of, draw_of, budget=budget, scale=scale, choice=choice, rows=rows, passes=steps
        )
    return replace(made, seconds=time.perf_counter() - began)


@torch.enable_grad()
def _plan(wrapped: PeftModel, left: Sequence[str], *given: Any, **options: Any) -> RankPlan:
    wrapped.eval()
    paths, base = path_set(wrapped), wrapped.get_base_model()
    linear = [path.module for path in paths.paths.values() if path.kind == "linear"]
    experts = converted(base, linear, paths.lookalikes)
    notes = tuple(_of_experts(left, experts))
    for note in notes:
        logger.warning(note)
    made = plan_paths(wrapped, paths, *given, **options)
    heads = tuple(forgotten_heads(base, candidates=linear))
    return replace(made, heads=heads, converted=tuple(experts), warnings=(*notes, *made.warnings))


def _of_experts(left: Sequence[str], experts: Sequence[str]) -> Iterator[str]:
    """Say, before any pass, which modules are no candidates, or can't be in a plain LoRA."""
    if left:
        yield (
            f"{taken_for_experts(left)}, so they are no candidates of a plan for plain LoRA. To have them, name "
            "what you want in target_modules=[...] and build the plan with plan.to_config()"
        )
    if experts:
        yield (
            f"{taken_for_experts(experts)}, so a plan with ranks there is built with plan.to_config(), as a "
            "HeteroLoraConfig: plan.to_lora_config() refuses it. For plain LoRA leave them out of target_modules"
        )


def _taken(batches: Iterable[Batch], model: nn.Module) -> list[Batch]:
    """Return the batches; a loader that shuffles draws, and so may a collator."""
    if not isinstance(batches, Iterable):
        raise ValueError(f"batches={batches!r:.80} must be training batches: a list of them, or a DataLoader")
    with same_draws(model):
        return list(batches)


def _numbers(budget: Any, scale: Any) -> tuple[int, float]:
    """Return the numbers as Python's, since sums may be numpy's, and refuse what they can't be."""
    budget, scale = plain(budget), plain(scale)
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise ValueError(f"budget={budget!r} must be a number of parameters, a whole number of at least 1")
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale <= LARGEST:
        raise ValueError(
            f"scale={scale!r:.60} must be positive and at most {LARGEST:.3g}, the largest of float32: it is alpha / r "
            "of every path"
        )
    return budget, scale
