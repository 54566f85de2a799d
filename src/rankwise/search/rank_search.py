"""The one search of ``granularity="rank"``: it gives the paths of a live adapter their ranks before training begins."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from torch.optim import Optimizer

from rankwise.configs.heterolora import HeteroLoraConfig
from rankwise.method.resizing import resize_
from rankwise.passes import work
from rankwise.paths.path_set import PathSet, head_parameters
from rankwise.planning.choosing import plan_paths
from rankwise.planning.head_warmup import head_steps, warmed_head
from rankwise.planning.options import PlanOptions, choice_from
from rankwise.planning.rank_plan import RankPlan
from rankwise.rules.budget import fraction_of
from rankwise.rules.records import HISTORY_FILE, SearchRecord, from_lines, searches
from rankwise.scores.curvature import drawn_loss
from rankwise.scores.likelihood import DrawLosses
from rankwise.scores.probe import (
    Autocast,
    Batch,
    ComputeLoss,
    check_runs,
    loss_in,
    model_loss,
    same_draws,
    untouched,
)

logger = logging.getLogger("rankwise")


def choose_ranks_(
    model: nn.Module,
    paths: PathSet,
    batches: Iterable[Batch],
    *,
    optimizer: Optimizer | None = None,
    compute_loss: ComputeLoss | None = None,
    draw_losses: DrawLosses | None = None,
    autocast: Autocast = nullcontext,
    plan: PlanOptions | None = None,
) -> SearchRecord:
    """Choose the ranks of an adapter's candidates jointly (``rankwise.rank_plan``) and give them to the paths.

    Afterwards only what was chosen is in memory, the adapter's config builds just that, and everything is on.

    Args:
        model: The model that the paths are on.
        paths: An adapter's paths whose ranks are still to be chosen.
        batches: Training batches with labels; the config's ``score_batches`` first ones are used.
        optimizer: An optimizer that exists already, to be refused where it owns the candidates.
        compute_loss: Called with (model, batch), for losses that the model does not compute itself; the batch is on
            the model's device.
        draw_losses: For such losses, see ``rankwise.rank_plan``.
        autocast: Makes the context of each forward pass.
        plan: Options of ``rankwise.rank_plan``; its defaults if left out. A head that is trained before is put back.

    Raises:
        ValueError: An option is unknown or out of range, an optimizer owns the candidates, or what
            ``rankwise.rank_plan`` raises.
    """
    began = time.perf_counter()
    if optimizer is not None:
        check_not_owned(paths, optimizer)
    config: HeteroLoraConfig = paths.config
    choice, head_warmup = choice_from(plan, seed=config.seed)
    if choice.time_limit is not None and not isinstance(model, PeftModel):
        raise ValueError(
            f"time_limit={choice.time_limit!r} times steps of a PeftModel, and this is a {type(model).__name__}: "
            "make it with peft.get_peft_model, or leave time_limit out"
        )
    check_runs(paths)
    with same_draws(model):  # a collator may draw
        given = [batch for _, batch in zip(range(config.score_batches), batches, strict=False)]
    loss_of = loss_in(compute_loss or model_loss, autocast)
    fewest = choice.check_batches(given, next(model.parameters()).device)
    steps = head_steps(model, given[:fewest], head_warmup)
    # Candidates are off until they have a rank; probing makes every one of them contribute (B is zero, so nothing
    # moves).
    before, paths.session.probing = paths.session.probing, True
    try:
        with (
            work(f"choosing the ranks of {len(paths.paths)} paths", steps + 2 * len(given)),
            warmed_head(model, given, loss_of, steps, keep=False),
            untouched(model),
            torch.enable_grad(),
        ):
            model.eval()
            made = plan_paths(
                model,
                paths,
                given,
                loss_of,
                drawn_loss(draw_losses, autocast, config.seed),
                budget=budget_of(paths),
                scale=config.lora_alpha / config.r,
                choice=choice,
                rows=draw_losses is None,
                passes=steps,
            )
    finally:
        paths.session.probing = before
    return adopt_(model, paths, made, time.perf_counter() - began)


def adopt_(model: nn.Module, paths: PathSet, plan: RankPlan, seconds: float) -> SearchRecord:
    """Give the paths the ranks of a plan, and write it into the history."""
    budget, proxy = paths.config.budget, paths.config.proxy
    gains = dict.fromkeys(plan.ranks, 0.0)
    for pick in plan.picks:
        gains[pick.path] += pick.gain
    # Before the record: its counts are of what is left in memory.
    _replace_(paths, plan.ranks)
    record = SearchRecord(
        step=0,
        search=0,
        how="probe",
        proxy=proxy,
        score_on="weight",
        scores=dict(gains),
        chosen=list(plan.chosen),
        switched_on=sorted(plan.chosen),
        ranks=plan.chosen,
        counts={**paths.counts(), "head": head_parameters(model, paths)},
        budget=budget,
        unspent=f"{plan.unspent} parameters: {plan.unspent_because}" if plan.unspent else "",
        seconds=seconds,
    )
    paths.history.append(record)
    logger.info(
        "ranks chosen in %.1f s: %d of %d paths, %d parameters", seconds, len(plan.chosen), len(plan.ranks), plan.spent
    )
    return record


def budget_of(paths: PathSet) -> int:
    """Return the budget as a number of parameters: a fraction is one of all candidates at the config's ranks."""
    config: HeteroLoraConfig = paths.config
    if isinstance(config.budget, int):
        return config.budget
    ranks = {True: config.r, False: config.r if config.shortcut_r is None else config.shortcut_r}
    return fraction_of(
        config.budget, sum(ranks[path.kind == "linear"] * path.num_parameters for path in paths.resident)
    )


def check_not_owned(paths: PathSet, optimizer: Optimizer) -> None:
    """Refuse an optimizer that was made before the ranks were chosen.

    Raises:
        ValueError: It owns candidates, which the choice replaces.
    """
    _refuse_owner(optimizer, [parameter for path in paths.resident for parameter in path.parameters])


def _replace_(paths: PathSet, ranks: Mapping[str, int]) -> None:
    """Give the paths their ranks, and refuse the steps of an optimizer that owns the candidates they replace."""
    replaced = [weakref.ref(parameter) for path in paths.resident for parameter in path.parameters]
    resize_(paths, ranks)

    def check(optimizer: Optimizer) -> None:
        # Nobody told a plain loop's optimizer, and it would train the head, or nothing, without a word.
        replaced[:] = [reference for reference in replaced if reference() is not None]
        _refuse_owner(optimizer, [parameter for reference in replaced if (parameter := reference()) is not None])

    paths.session.before_any_step = check


def _refuse_owner(optimizer: Optimizer, candidates: Iterable[nn.Parameter]) -> None:
    own = {id(parameter) for parameter in candidates}
    if any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError(
            "granularity='rank' makes the paths anew when their ranks are chosen, and the optimizer was made before: "
            "make it after rankwise.Allocator(model, batches=...), let Trainer make its own, or plan beforehand with "
            "rankwise.rank_plan(base, batches, budget=...) and train plan.to_config()"
        )


def check_plan(plan: PlanOptions | None, configs: Iterable[object]) -> None:
    """Refuse options of a rank plan that are wrong, or that no adapter makes a plan with.

    Args:
        plan: What the user gave as ``plan=``.
        configs: The adapters' configs.

    Raises:
        ValueError: One is unknown or out of range, or no config has ``granularity="rank"``.
    """
    if plan is None:
        return
    choice_from(plan, seed=0)
    if not any(isinstance(config, HeteroLoraConfig) and config.granularity == "rank" for config in configs):
        raise ValueError(
            f"plan={dict(plan)!r:.80} has options of a rank plan, and nothing here makes one: set granularity='rank' "
            "in HeteroLoraConfig, or leave plan= out"
        )


def undecided_error(adapter: str) -> ValueError:
    """Return what is raised where training begins before the ranks were chosen."""
    return ValueError(
        f"the ranks of adapter {adapter!r} are not chosen yet (granularity='rank'), and a training loop alone has no "
        "batches to choose by: call rankwise.Allocator(model, batches=...) before the optimizer is made, train with "
        "transformers' Trainer, or plan with rankwise.rank_plan(base, batches, budget=...) and train plan.to_config(), "
        "which has mode='off'; mode='dynamic' searches whole paths by the steps of training alone"
    )


def restore_ranks_(paths: PathSet, folder: str | Path) -> None:
    """Give candidates the ranks that a saved adapter has, so that its weights can be loaded.

    Args:
        paths: Paths whose ranks are still to be chosen.
        folder: The folder of an adapter that was saved after the choice.

    Raises:
        ValueError: No choice of ranks was saved there, or it was made among other paths.
    """
    file = Path(folder) / HISTORY_FILE
    history = from_lines(file.read_text(encoding="utf-8"), file) if file.is_file() else []
    chosen = [record for record in searches(history) if record.ranks]
    if not chosen:
        raise ValueError(f"{folder} holds no choice of ranks ({HISTORY_FILE}), so nothing can go on from there")
    unknown = sorted(set(chosen[-1].ranks) - set(paths.paths))
    if unknown:
        raise ValueError(
            f"{file} gives a rank to {unknown[0]!r}, and this model has no such candidate: same base, same targets?"
        )
    _replace_(paths, {name: chosen[-1].ranks.get(name, 0) for name in paths.paths})
