"""What a joint choice is made of: slopes, and one number per example and component, of all batches and of halves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.distributed import of_every_process
from rankwise.errors import remedy
from rankwise.paths.path_set import PathSet
from rankwise.rules.joint import Vector
from rankwise.scores.components import Directions, component_statistic, directions_of, gradients_of
from rankwise.scores.curvature import Batch, DrawBatch, curvature_pass, gradient_pass
from rankwise.scores.likelihood import IGNORED, SAME_LOSS
from rankwise.scores.probe import ComputeLoss
from rankwise.scores.recorder import Sums

REDUCTIONS = ("auto", "mean", "sum")


@dataclass(frozen=True)
class Signal:
    """What one choice is made of.

    Args:
        slopes: ``lin`` of each component (n,).
        examples: ``a_e`` of each example and component, m x n.
        terms: ``N``, the number of loss terms behind them.
        owners: The number of the path that each component belongs to, in the order of the path set.
        unit: What a gain of 1 is by the loss's own curvature, which is the negative log-likelihood's but for a factor
            (see ``Drawn``). The same for all components, so it changes no choice.
    """

    slopes: Vector
    examples: Vector
    terms: int
    owners: list[int]
    unit: float = 1.0


@dataclass(frozen=True)
class Counts:
    """What there is to choose by, over all processes.

    Args:
        batches: How many batches each part has.
        examples: How many examples; None where a batch does not say.
    """

    batches: list[int]
    examples: list[int] | None


def count_parts(batches: Sequence[Batch], parts: int, device: torch.device, *, rows: bool = True) -> Counts:
    """Count before any pass what each part has; batch ``b`` is of part ``b mod parts``.

    Args:
        batches: This process's batches.
        parts: How many parts.
        device: Where processes exchange their numbers.
        rows: Whether each row of ``labels`` is an example, as it is unless the user draws labels.
    """
    examples = [sum(_rows(batch) if rows else math.nan for batch in batches[part::parts]) for part in range(parts)]
    own = [*(len(batches[part::parts]) for part in range(parts)), *examples]
    totals = [sum(each) for each in zip(*of_every_process(own, device), strict=True)]
    known = not any(map(math.isnan, totals[parts:]))
    return Counts([int(count) for count in totals[:parts]], [int(count) for count in totals[parts:]] if known else None)


def _rows(batch: Batch) -> float:
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    return len(labels) if isinstance(labels, Tensor) and labels.ndim else math.nan


def collect_signals(
    model: nn.Module,
    paths: PathSet,
    batches: Sequence[Batch],
    loss_of: ComputeLoss,
    draw_of: DrawBatch,
    *,
    counts: Counts,
    components: int,
    matched: str,
    reduction: str,
    halves: bool,
    cross_validate: bool,
    seed: int,
) -> tuple[dict[str, Signal], float]:
    """Make the two passes of a choice: one for directions, one for the curvature along them.

    Batch ``b`` is of half ``b mod 2``. ``"all"`` is the signal of the choice itself; with ``halves``, ``"first"`` and
    ``"second"`` are those of the choice made on each half alone. With ``cross_validate``, ``"first"`` has its
    directions from the first half and its slopes, ``max(0, .)``, and curvature from the second, ``"second"`` has them
    swapped, and ``"all"`` is ``"first"``: a direction that is noise has no slope on the other half.

    Args:
        model: The model with the candidates on it, in the mode it is to be scored in.
        paths: The candidates.
        batches: The batches.
        loss_of: Called with (model, batch): the loss.
        draw_of: Called with (model, batch, number of the batch): the loss under drawn labels.
        counts: What ``count_parts`` counted of the batches.
        components: How many directions each path offers.
        matched: ``"adam"`` or ``"sgd"``.
        reduction: ``"mean"`` or ``"sum"`` over loss terms, or ``"auto"`` to check that it is the mean.
        halves: Whether the halves are wanted.
        cross_validate: Whether directions and signal come from different halves.
        seed: Seeds the sketches.

    Returns:
        The signals, and the mean loss of a batch over all processes; with ``"sum"`` that of a term.

    Raises:
        ValueError: There are too few examples, or the loss is not the mean over its terms: in all processes together.
    """
    parts = len(counts.batches)
    sources = _sources(halves=halves, cross_validate=cross_validate)
    if counts.examples is not None:
        _check_examples(min(_sum_of(counts.examples, source) for source in sources.values()), components, parts)
    device = next(model.parameters()).device
    statistic = component_statistic(paths.paths.values(), components, parts=parts, seed=seed)
    means, losses = gradient_pass(model, paths, batches, statistic, loss_of, parts=parts)
    numbered = [list(enumerate(batches))[part::parts] for part in range(parts)]
    gradients = [gradients_of(statistic, mean) for mean in (*means, _mean(means, counts.batches))]
    owners = _reached(paths, gradients)
    along = {
        choice: {name: directions_of(gradients[source.directions][name], components, matched) for name in owners}
        for choice, source in sources.items()
    }
    found: dict[str, list[Vector]] = {choice: [] for choice in sources}
    terms: dict[int, int] = {}
    unit = 1.0
    for part in range(parts):
        wanted = [choice for choice, source in sources.items() if part in source.parts]
        if not wanted:  # of the second cross-validated choice, where no halves are asked for
            continue
        beside = {name: _beside([along[choice][name] for choice in wanted]) for name in owners}
        seen = curvature_pass(model, paths, numbered[part], beside, draw_of)
        if reduction == "auto" and not terms:
            _check_mean(losses[part], seen.mean, seen.terms / counts.batches[part], device)
        terms[part], unit = seen.terms, seen.unit
        for position, choice in enumerate(wanted):
            columns = [seen.values[name].tensor_split(len(wanted), dim=1)[position] for name in owners]
            found[choice].append(torch.cat(columns, dim=1).numpy(force=True))
    _check_terms(list(terms.values()))
    counted = sum(counts.batches[part] for part in terms)
    factor = counted / sum(terms.values()) if reduction == "sum" else 1.0
    signals = {}
    for choice, source in sources.items():
        slopes = [along[choice][name].slopes(gradients[source.slopes][name]) for name in owners]
        lin = torch.cat([each.to(device) for each in slopes]).numpy(force=True) * factor
        signals[choice] = Signal(
            slopes=lin.clip(min=0.0) if cross_validate else lin,
            examples=np.concatenate(found[choice]),
            terms=sum(terms[part] for part in source.parts),
            owners=[owners[name] for name in owners for _ in range(along[choice][name].left.shape[1])],
            unit=unit,
        )
    _check_examples(min(len(signal.examples) for signal in signals.values()), components, parts)
    return signals, _mean_loss(losses, device) * factor


def _reached(paths: PathSet, gradients: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the numbers of the paths that every choice is among: those that gradients of every part reach.

    Raises:
        ValueError: There is none.
    """
    owners = {name: owner for owner, name in enumerate(paths.paths) if all(name in found for found in gradients)}
    if not owners:
        raise ValueError(
            f"no gradient reaches any of the {len(paths.paths)} candidates: the loss does not depend on them, is not "
            f"finite, or the adapter is not the active one; then call model.set_adapter({paths.adapter!r}) before"
        )
    return owners


def _sum_of(numbers: Sequence[int], source: _Source) -> int:
    return sum(numbers[part] for part in source.parts)


class _Source(NamedTuple):
    """Where a choice's directions and slopes come from, as positions of gradients, and its curvature, as parts."""

    directions: int
    slopes: int
    parts: tuple[int, ...]


def _sources(*, halves: bool, cross_validate: bool) -> dict[str, _Source]:
    """Return the choices to be made; gradients are those of each part, then those of all batches."""
    if cross_validate:
        first, second = _Source(0, 1, (1,)), _Source(1, 0, (0,))
        return {"all": first, "first": first, "second": second} if halves else {"all": first}
    if halves:
        return {"all": _Source(2, 2, (0, 1)), "first": _Source(0, 0, (0,)), "second": _Source(1, 1, (1,))}
    return {"all": _Source(0, 0, (0,))}


def _mean(means: Sequence[Sums], weights: Sequence[int]) -> Sums:
    """Return the weighted mean of what was collected of each part, of what every part has."""
    total = sum(weights)
    return {
        name: tuple(
            torch.stack([mean[name][position] * (w / total) for mean, w in zip(means, weights, strict=True)]).sum(0)
            for position in range(len(tensors))
        )
        for name, tensors in means[0].items()
        if all(name in mean for mean in means)
    }


def _beside(directions: Sequence[Directions]) -> Directions:
    """Return several choices' directions of one path as one set; each has as many."""
    return Directions(torch.cat([d.left for d in directions], 1), torch.cat([d.right for d in directions], 1))


def _check_terms(terms: Sequence[int]) -> None:
    """Refuse batches without a label that counts; the numbers are those of all processes."""
    if not all(terms):
        raise ValueError(
            f"no label counts in {'one half of ' if any(terms) else ''}the batches: each is {IGNORED}. Mask less of "
            "the labels (a prompt longer than the batch leaves none), or give other batches"
        )


def _mean_loss(losses: Sequence[float], device: torch.device) -> float:
    """Return the mean over all processes' batches that have a loss; one in which no label counts has none."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    sums = of_every_process([math.fsum(finite), len(finite)], device)
    count = sum(number for _, number in sums)
    return sum(total for total, _ in sums) / count if count else math.nan


def _check_mean(own: float, own_mean: float | None, terms: float, device: torch.device) -> None:
    """Refuse a loss that is not the mean over its terms, where what the mean would be is known.

    A process that raised alone would leave the others waiting for it, so all look at every process's first batch.
    """
    for loss, mean in of_every_process([own, math.nan if own_mean is None else own_mean], device):
        if math.isnan(mean) or abs(loss - mean) <= SAME_LOSS * max(abs(mean), abs(loss)):
            continue
        raise ValueError(
            f"the loss of the first batch is {loss:.6g}, and the mean over its terms (about {terms:.0f} a batch) is "
            f"{mean:.6g}. If it is a sum over terms, say {remedy(reduction='sum')}; if it is another loss on purpose "
            f"(scaled, weighted, smoothed), say {remedy(reduction='mean')} to have its gradient as it is"
        )


def _check_examples(examples: int, components: int, parts: int) -> None:
    """Refuse fewer examples than a choice has components of one path; ``examples`` are those of the smallest part."""
    if examples < components:
        raise ValueError(
            f"{examples} examples{' in a half of the batches' if parts > 1 else ''} can't tell {components} components "
            f"of a path apart: give more or larger batches, or {remedy(components=max(examples, 1))}"
        )
