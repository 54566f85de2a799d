"""The joint choice of ranks for paths that are on a model: signals, guards, picks."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from rankwise.distributed import check_same_everywhere
from rankwise.errors import remedy
from rankwise.paths.path_set import PathSet
from rankwise.planning.options import Choice
from rankwise.planning.rank_plan import Depth, Pick, RankPlan, Time
from rankwise.planning.step_time import measure_step
from rankwise.planning.time_limit import TimeLimit, uniform_ranks
from rankwise.rules.joint import Picks, TimeRoom, choose_jointly, curvature_of
from rankwise.scores.curvature import DrawBatch
from rankwise.scores.probe import Batch, ComputeLoss
from rankwise.scores.signals import Counts, Signal, collect_signals, count_parts

logger = logging.getLogger("rankwise")
LEAST_COMPONENTS, MOST_COMPONENTS = 8, 64
LEAST_KEPT = 0.6  # of its own predicted gain, with the other half's ranks
# Of the loss: 0.14 to 0.27 on the language model below one rank each, where plans were ahead, 0.10 to 0.20 on MRPC and
# 0.14 to 0.39 on TREC, where they were level: a sign, and no proof.
LEAST_GAIN = 0.15
TINY = 1e-300  # so that of a gain of zero nothing is kept


def plan_paths(
    model: nn.Module,
    paths: PathSet,
    batches: Sequence[Batch],
    loss_of: ComputeLoss,
    draw_of: DrawBatch,
    *,
    budget: int,
    scale: float,
    choice: Choice,
    rows: bool = True,
    passes: int = 0,
) -> RankPlan:
    """Choose the ranks of a model's candidate paths, which are on it at rank 1.

    Args:
        model: The model, in the mode it is to be scored in; what a pass leaves behind is the caller's to put back.
        paths: The candidates.
        batches: Training batches, enough for the choice.
        loss_of: Called with (model, batch): the loss.
        draw_of: Called with (model, batch, number of the batch): the loss under drawn labels.
        budget: The most parameters the plan may have.
        scale: ``alpha / r`` of every path, for the record.
        choice: How to choose.
        rows: Whether each row of a batch's labels is an example, as it is unless the user draws labels.
        passes: Passes that were made before, for the record.

    Raises:
        ValueError: The budget is below the cheapest component, there are too few batches or examples, or the loss is
            not the mean over its terms.
    """
    began = time.perf_counter()
    device = next(model.parameters()).device
    costs = _rank_costs(paths, budget)
    limit = _time_limit(model, paths, batches[0], loss_of, choice, uniform_ranks(costs, budget))
    counts = count_parts(batches, choice.parts, device, rows=rows)
    signals, loss = collect_signals(
        model,
        paths,
        batches,
        loss_of,
        draw_of,
        counts=counts,
        components=min(choice.components or _components(budget, costs, limit, counts), _widest(paths)),
        matched=choice.directions,
        reduction=choice.reduction,
        halves=choice.halves,
        cross_validate=choice.cross_validate,
        seed=choice.seed,
    )
    at_any_depth = _Chooser(costs, budget, choice.damping, limit)
    chooser, depths, guarded = _settle(at_any_depth, signals, choice, sum(counts.batches))
    picks = chooser.choose(signals["all"], guarded.breadth)
    guarded = replace(guarded, notes=(*guarded.notes, *_little(sum(picks.marginals), loss, guarded.breadth)))
    ranks = chooser.ranks(signals["all"], picks)
    # Sums over processes may differ in the last bit, and one bit may turn a choice.
    check_same_everywhere(list(map(repr, ranks.items())), "the rank plan", device)
    _tell(guarded, choice)
    return RankPlan(
        ranks=ranks,
        modules={name: path.module for name, path in paths.paths.items() if path.kind == "linear"},
        lookalikes=paths.lookalikes,
        costs=costs,
        picks=_named(picks, list(costs), signals["all"].owners),
        budget=budget,
        scale=scale,
        unspent_because=_unspent(picks, costs, signals["all"].owners),
        overlap=guarded.overlap,
        kept=guarded.kept,
        breadth=guarded.breadth,
        loss=loss,
        directions=choice.directions,
        damping=choice.damping,
        seconds=time.perf_counter() - began,
        passes=passes + _passes(len(batches), choice),
        warnings=guarded.notes,
        time=_time_of(limit, ranks, depths),
    )


def _time_limit(
    model: nn.Module,
    paths: PathSet,
    batch: Batch,
    loss_of: ComputeLoss,
    choice: Choice,
    uniform: Mapping[str, int],
) -> TimeLimit | None:
    """Return the limit on a step's time, if there is one, its parts measured unless they were given."""
    if choice.time_limit is None:
        return None
    step = choice.step_time
    if step is None:
        modes = [(module, module.training) for module in model.modules()]
        step = measure_step(model, paths.paths, batch, loss_of, prefix_cache=choice.prefix_cache)
        for module, mode in modes:
            module.training = mode
    elif set(step.first) != set(paths.paths):
        strange = sorted(set(step.first) ^ set(paths.paths))
        raise ValueError(
            f"step_time= was measured for other paths, {strange[0]} among them: give that of a plan for the same model "
            "and space, or leave it out to have it measured"
        )
    return TimeLimit(choice.time_limit, step.of(list(paths.paths)), uniform, choice.prefix_cache)


def _time_of(limit: TimeLimit | None, ranks: Mapping[str, int], depths: tuple[Depth, ...]) -> Time | None:
    if limit is None:
        return None
    return Time(limit.share, limit.share_of(ranks), limit.prefix_cache, limit.step, depths)


def _named(picks: Picks, names: Sequence[str], owners: Sequence[int]) -> tuple[Pick, ...]:
    return tuple(
        Pick(names[owners[j]], gain, cost)
        for j, gain, cost in zip(picks.order, picks.marginals, picks.costs, strict=True)
    )


def _passes(batches: int, choice: Choice) -> int:
    return batches + (batches if choice.halves or not choice.cross_validate else batches // 2)


@dataclass(frozen=True)
class _Guarded:
    """What the halves say about a choice, and the breadth that follows."""

    breadth: float
    overlap: float | None = None
    kept: float | None = None
    notes: tuple[str, ...] = ()


def _tell(guarded: _Guarded, choice: Choice) -> None:
    """Say what the halves give reason to say; a warning where something else was done than was asked for."""
    for note in guarded.notes:
        if guarded.breadth != choice.breadth:
            warnings.warn(note, stacklevel=4)
        else:
            logger.warning(note)


def _settle(
    at_any_depth: _Chooser, signals: Mapping[str, Signal], choice: Choice, batches: int
) -> tuple[_Chooser, tuple[Depth, ...], _Guarded]:
    """Return who chooses at which depth, what each depth would bring, and what the halves say of it."""
    chooser, depths = at_any_depth.settled(signals["all"], choice.breadth)
    guarded = _guard(chooser, signals, choice, batches)
    if guarded.breadth != choice.breadth:
        chooser, depths = at_any_depth.settled(signals["all"], guarded.breadth)
    return chooser, depths, guarded


def _guard(chooser: _Chooser, signals: Mapping[str, Signal], choice: Choice, batches: int) -> _Guarded:
    """Compare the choices of two halves; where they share too little, the plan is the uniform one and says so."""
    if not choice.halves:
        return _Guarded(choice.breadth)
    overlap, kept = chooser.agreement(signals["first"], signals["second"], choice.breadth)
    if choice.breadth == 1.0 or (overlap >= choice.least_overlap and kept >= LEAST_KEPT):
        return _Guarded(choice.breadth, overlap, kept)
    if overlap >= choice.least_overlap:
        note = (
            f"with the ranks chosen on the other half of the {batches} batches, a half keeps {kept:.0%} of its "
            "predicted gain: the data can hardly tell which paths are worth more. Give more batches, or "
            f"{remedy(breadth=1.0)} for the uniform plan"
        )
        return _Guarded(choice.breadth, overlap, kept, (note,))
    note = (
        f"the choices made on two halves of the {batches} batches share {overlap:.2f} of their cost, less than "
        f"{choice.least_overlap}: the data can't tell the paths apart, so the plan is the uniform one. Give more "
        f"batches, or {remedy(least_overlap=0.0)} to have the choice all the same"
    )
    return _Guarded(1.0, overlap, kept, (note,))


def _little(gain: float, loss: float, breadth: float) -> tuple[str, ...]:
    """Warn where the predicted gain is small beside the loss, unless the plan is uniform whatever it is."""
    if breadth == 1.0 or not 0 <= gain < LEAST_GAIN * loss:
        return ()
    return (
        f"the loss is predicted to fall by {gain:.3g}, {gain / loss:.0%} of {loss:.3g}: at this budget the score sees "
        "little to gain here, so what it prefers says little about what training needs later. Tune the plan against "
        f"uniform LoRA, or give {remedy(breadth=1.0)} for the uniform plan",
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
        time: The limit on a step's time, if there is one.
        room: Which paths may be chosen together, and the time for their own work; None for all and any.
    """

    costs: Mapping[str, int]
    budget: int
    damping: float
    time: TimeLimit | None = None
    room: tuple[set[str], TimeRoom] | None = None

    def settled(self, signal: Signal, breadth: float) -> tuple[_Chooser, tuple[Depth, ...]]:
        """Return the chooser for one depth of the backward pass, that of the best choice, and what each would bring.

        The shallowest of equals is taken. Without a time limit depth costs nothing.
        """
        if self.time is None:
            return self, ()
        each = {}
        for room in self.time.rooms():
            chooser = replace(self, room=room)
            picks = chooser.choose(signal, breadth)
            share = self.time.share_of(chooser.ranks(signal, picks))
            each[Depth(self.time.lowest(room[0]), share, sum(picks.marginals))] = chooser
        return each[max(each, key=lambda depth: depth.gain)], tuple(each)

    def choose(self, signal: Signal, breadth: float, *, most: Sequence[int] | None = None) -> Picks:
        """Choose jointly; ``most`` limits the rank of each path. What each pick adds is told in units of the loss."""
        allowed, room = self.room or (set(self.costs), None)
        if self.room is not None:
            limits = most if most is not None else [len(signal.owners)] * len(self.costs)
            most = [limit * (name in allowed) for name, limit in zip(self.costs, limits, strict=True)]
        prices = list(self.costs.values())
        picks = choose_jointly(
            signal.slopes,
            curvature_of(signal.examples, signal.terms),
            [prices[owner] for owner in signal.owners],
            self.budget,
            owners=signal.owners,
            damping=self.damping,
            breadth=breadth,
            most=most,
            room=room,
        )
        return replace(picks, marginals=tuple(signal.unit * gain for gain in picks.marginals))

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


def _components(budget: int, costs: Mapping[str, int], limit: TimeLimit | None, counts: Counts) -> int:
    """Return how many directions each path offers: twice the uniform rank of those that can be chosen together.

    Under a time limit these may be few, and ranks cost hardly any time; but no more than a part's examples tell apart.
    """
    if limit is None:
        return min(max(2 * math.ceil(budget / sum(costs.values())), LEAST_COMPONENTS), MOST_COMPONENTS)
    uniform = math.ceil(budget / limit.widest(costs))
    return max(min(2 * uniform, MOST_COMPONENTS, min(counts.examples or [0])), LEAST_COMPONENTS)


def _widest(paths: PathSet) -> int:
    """Return the most directions that any path has: the rank of a full matrix."""
    return max(min(path.lora_B.shape[0], path.lora_A.shape[1]) for path in paths.paths.values())


def _unspent(picks: Picks, costs: Mapping[str, int], owners: Sequence[int]) -> str:
    if not picks.left:
        return ""
    if len(picks.order) == len(owners):
        return f"all {len(owners)} components that the paths offer are taken: more budget needs a larger components"
    names, taken = list(costs), set(picks.order)
    least = min(costs[names[owner]] for j, owner in enumerate(owners) if j not in taken)
    if least <= picks.left:
        return "what fits into the rest does not fit into the time"
    return f"one more rank costs at least {least} parameters"


def _rank_costs(paths: PathSet, budget: int) -> dict[str, int]:
    """Return what one rank of each path costs, and refuse a budget below the cheapest."""
    costs = {name: cost // paths.paths[name].r for name, cost in paths.costs().items()}
    cheapest = min(costs, key=lambda name: costs[name])
    if budget < costs[cheapest]:
        raise ValueError(
            f"budget={budget} is below the cheapest component: one rank of {cheapest} costs {costs[cheapest]} "
            f"parameters, one rank of everything {sum(costs.values())}"
        )
    return costs
