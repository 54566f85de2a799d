"""The curvature of the loss along components of paths, from two passes over the scoring batches.

Letters: ``D`` a direction (o x i) of a path's matrix, ``G`` the mean gradient of the loss, ``e`` an example, ``n`` its
tokens, ``g~`` the gradient of its *summed* loss under labels drawn from the model, ``N`` the number of loss terms.

    lin(D) = <G, D>
    a_e(D) = sum over the example's tokens of g~^T D x
    q(D, D') = (1/N) sum over examples of a_e(D) a_e(D')

``q`` is the true Fisher, which for these likelihoods is the Gauss-Newton matrix: the curvature of the mean negative
log-likelihood. It does not depend on how the training loss is scaled: of a regression of c outputs, whose loss is the
mean of squares without a half, the loss's curvature is ``2/c q``, of c labels by themselves ``q/c``. That changes no
choice; a plan's gain is brought to the loss (``Signal.unit``), a ``newton`` score is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.distributed import gather_rows, rank, sum_over_processes_
from rankwise.passes import passed
from rankwise.paths.autograd import Tap
from rankwise.paths.low_rank_path import LowRankPath
from rankwise.paths.path_set import PathSet
from rankwise.scores.batches import beside, to_device
from rankwise.scores.components import Directions, Gradients
from rankwise.scores.likelihood import DrawLosses, Drawn, draw, sequences_of
from rankwise.scores.recorder import StatisticRecorder, Sums
from rankwise.scores.statistics import Statistic
from rankwise.seeds import stable_seed

Batch = Any
DrawBatch = Callable[[nn.Module, Batch, int], Drawn]
TIME_MAJOR = ("fsmt", "xlnet")  # model types whose hidden states are tokens x examples x d


class ExampleRecorder:
    """Sums ``g~^T D_j x`` over the tokens of each example, for all directions of every path in one backward pass.

    One pass over the summed loss of a batch gives every example's own gradient, because examples don't see each other.
    Where an example has several sequences (multiple choice), they stand one behind the other and sum up as its tokens.

    Args:
        directions: The directions of each path, by its name.
    """

    def __init__(self, directions: Mapping[str, Directions]) -> None:
        self.directions = directions
        self.anchor = torch.empty(0, requires_grad=True)
        self.examples = 0
        self.sequences = 1
        self.lengths: set[int] = set()
        self.found: dict[str, Tensor] = {}

    def drop(self) -> None:
        """Forget the step under way."""
        self.found = {}

    def keep(self, names: set[str]) -> None:
        """Forget all but the named paths."""
        self.found = {name: value for name, value in self.found.items() if name in names}

    @torch.compiler.disable
    def tap(self, path: LowRankPath, x: Tensor, result: Tensor) -> Tensor:
        """Return ``result`` with a tap on it; ``x`` is examples x tokens x i, or its tokens flattened."""
        return Tap.apply(result, x, self.anchor, partial(self._record, path, x.shape))

    def _record(self, path: LowRankPath, shape: Sequence[int], x: Tensor, g: Tensor) -> None:
        rows, several = self.examples, {self.examples, self.examples * self.sequences}
        flat = {number * length for number in several for length in (1, *self.lengths)}
        if not (shape[0] in several if len(shape) > 2 else len(x) in flat):
            raise ValueError(
                f"{path.name} reads a tensor of shape {tuple(shape)} in a batch of {rows} examples, so which token is "
                "whose can't be told: leave the path out of the candidates, or score with proxy='grad_norm'"
            )
        if path.name not in self.directions:
            return
        along = self.directions[path.name]
        wide = torch.float64 if torch.float64 in (x.dtype, g.dtype) else torch.float32
        with torch.autocast(x.device.type, enabled=False):
            # Sums over tokens in half precision would lose the small slopes that the choice is about.
            left, right = along.left.to(x.device, wide), along.right.to(x.device, wide)
            seen = ((g.to(wide) @ left) * (x.to(wide) @ right)).view(rows, -1, left.shape[1]).sum(1)
        # A module may be called more than once in a forward pass (a shared layer): its slopes add up.
        self.found[path.name] = self.found[path.name] + seen if path.name in self.found else seen

    def take(self) -> dict[str, Tensor]:
        """Return ``a_e(D_j)`` of each path, examples x k, and forget it."""
        found, self.found = self.found, {}
        return found


@contextmanager
def seen_by(paths: PathSet, recorder: Any) -> Iterator[None]:
    """Show every path's source and destination to a recorder, all paths contributing."""
    before = paths.session.recorder, paths.session.probing
    paths.session.recorder, paths.session.probing = recorder, True
    try:
        yield
    finally:
        paths.session.recorder, paths.session.probing = before


def gradient_pass(
    model: nn.Module,
    paths: PathSet,
    batches: Sequence[Batch],
    statistic: Statistic,
    loss_of: Callable[[nn.Module, Batch], Tensor],
    *,
    parts: int = 1,
) -> tuple[list[Sums], list[float]]:
    """Collect the mean gradient of every path, batch ``b`` for part ``b mod parts``.

    Args:
        model: The model, wrapped or not, in the mode it is to be scored in.
        paths: The candidates.
        batches: The batches.
        statistic: What is summed: ``G`` itself, or sketches of it.
        loss_of: Called with (model, batch): the loss as the trainer reduces it.
        parts: Into how many parts the batches are divided.

    Returns:
        What was collected of each part, over all processes, and the loss of each of this process's batches.

    Raises:
        ValueError: A part has no batch.
    """
    recorders = [StatisticRecorder(statistic) for _ in range(parts)]
    losses = []
    for number, batch in enumerate(batches):
        recorder = recorders[number % parts]
        with seen_by(paths, recorder):
            loss = loss_of(model, batch)
            torch.autograd.grad(loss, recorder.anchor, allow_unused=True)  # inside: checkpointing runs forward again
        # One batch is one step: its G is added with the weight of a batch, as an optimizer step would see it.
        recorder.fold()
        losses.append(float(loss.detach()))
        passed()
    if len(batches) < parts:
        raise ValueError(f"the curvature needs at least {parts} training batches, got {len(batches)}")
    return [recorder.means() for recorder in recorders], losses


@dataclass(frozen=True)
class Examples:
    """What a pass over drawn labels found.

    Args:
        values: ``a_e(D_j)`` of every path, examples x k, all processes' examples.
        terms: ``N``.
        mean: The mean loss of the labels that this process's first batch came with, where it is known.
        unit: What a term's negative log-likelihood is of its loss, see ``Drawn``.
    """

    values: dict[str, Tensor]
    terms: int
    mean: float | None
    unit: float = 1.0


def curvature_pass(
    model: nn.Module,
    paths: PathSet,
    batches: Sequence[tuple[int, Batch]],
    directions: Mapping[str, Directions],
    draw_of: DrawBatch,
) -> Examples:
    """Collect ``a_e(D_j)`` of every direction of every path.

    Args:
        model: The model, wrapped or not, in the mode it is to be scored in.
        paths: The candidates.
        batches: The batches, each with its number.
        directions: The directions of each path.
        draw_of: Called with (model, batch, number of the batch): the loss under drawn labels.

    Raises:
        ValueError: A path, or the family, does not keep examples apart.
    """
    config = getattr(model, "config", None)
    if getattr(config, "model_type", None) in TIME_MAJOR:  # seen from the shapes but where a batch is square
        raise ValueError(
            f"{type(model).__name__} keeps tokens before examples inside, so which token is whose can't be told: "
            "score with proxy='grad_norm'"
        )
    recorder = ExampleRecorder(directions)
    rows: list[Tensor] = []
    terms = 0
    told: list[tuple[float | None, float]] = []
    for number, batch in batches:
        with seen_by(paths, recorder):
            drawn: Drawn = draw_of(model, batch, number)
            recorder.examples = len(drawn.losses)
            recorder.sequences = drawn.sequences
            recorder.lengths = _lengths(batch, recorder.examples, drawn.sequences)
            torch.autograd.grad(drawn.losses.sum(), recorder.anchor, allow_unused=True)
        rows.append(_beside(recorder.take(), directions, recorder.examples))
        terms += drawn.terms
        told.append((drawn.mean, drawn.unit))
        passed()
    # Every process has its own examples, and the choice needs what components share over all of them.
    together = gather_rows(torch.cat(rows))
    total = torch.tensor([terms], dtype=torch.int64, device=together.device)
    sum_over_processes_([total])
    sizes = [along.left.shape[1] for along in directions.values()]
    values = dict(zip(directions, together.split(sizes, dim=1), strict=True))
    return Examples(values, int(total), *told[0])


def _lengths(batch: Batch, examples: int, sequences: int) -> set[int]:
    """Return how many tokens a sequence may have: the second sizes of the batch's tensors, of several the third."""
    values = batch.values() if isinstance(batch, Mapping) else ()
    tensors = [value for value in values if isinstance(value, Tensor) and value.ndim > 1]
    found = {t.shape[1] for t in tensors if t.shape[0] in (examples, examples * sequences)}
    return found | {t.shape[2] for t in tensors if sequences > 1 and t.ndim == 3 and t.shape[0] == examples}


def _beside(found: Mapping[str, Tensor], directions: Mapping[str, Directions], examples: int) -> Tensor:
    """Return all paths' numbers side by side, examples x components; zeros for a path that the loss does not see."""
    device = next(iter(found.values())).device if found else torch.device("cpu")
    columns = [
        found[name].double().to(device)
        if name in found
        else torch.zeros(examples, along.left.shape[1], dtype=torch.float64, device=device)
        for name, along in directions.items()
    ]
    return torch.cat(columns, dim=1)


def drawn_loss(draw_losses: DrawLosses | None, autocast: Any, seed: int) -> DrawBatch:
    """Return what draws labels for a batch: the user's function, or what the model's own loss asks for.

    Args:
        draw_losses: The user's, if any.
        autocast: Makes the context of the forward pass.
        seed: Seeds the draws.
    """

    def run(model: nn.Module, batch: Batch, number: int) -> Drawn:
        with autocast():
            if draw_losses is None:
                return draw(model, to_device(batch, model), seed)
            generator = torch.Generator().manual_seed(stable_seed(seed, "labels", rank(), number))
            losses, terms = draw_losses(model, beside(batch, model), generator)
        if losses.ndim != 1:
            raise ValueError(
                f"draw_losses returned losses of shape {tuple(losses.shape)}: it must return one summed loss per "
                "example, and the number of loss terms"
            )
        return Drawn(losses, terms, sequences=sequences_of(batch, len(losses)))

    return run


@torch.no_grad()
def newton_scores(
    paths: Mapping[str, LowRankPath], gradients: Gradients, examples: Examples, directions: Mapping[str, Directions]
) -> dict[str, float]:
    """Return ``lin(D)^2 / (2 q(D, D))`` of each path, with ``D`` the sum of its directions.

    Args:
        paths: The candidates.
        gradients: ``G`` of each.
        examples: What the curvature pass found along the directions.
        directions: The directions of each.
    """
    scores = {}
    for name in paths:
        if name not in gradients:
            scores[name] = math.nan  # no backward pass reached it
            continue
        slope = float(directions[name].slopes(gradients[name]).sum())
        curvature = float(examples.values[name].sum(1).square().sum()) / examples.terms
        scores[name] = newton_score(slope, curvature)
    return scores


def newton_score(slope: float, curvature: float) -> float:
    """Return ``lin^2 / (2 q)``, the decrease along the best multiple of a direction; 0 where there is no slope."""
    if slope == 0.0:
        return 0.0
    return slope * slope / (2 * curvature) if curvature > 0 else math.nan
