"""Collects a statistic of every path from backward passes, step by step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from rankwise.distributed import rank, sum_over_processes_, with_those_of_others, world_size
from rankwise.paths.autograd import Tap
from rankwise.paths.low_rank_path import LowRankPath
from rankwise.scores.statistics import Statistic

Sums = dict[str, tuple[Tensor, ...]]


class StatisticRecorder:
    """Sums a statistic over the micro-batches of a step, then over steps.

    A step's sum is kept apart until ``fold`` adds it, path by path, if it is finite; ``drop`` forgets it. A step that
    a gradient scaler skipped therefore leaves no trace in the scores. A step that did not come to a path, as when no
    token is routed to an expert, adds zero to it.

    Args:
        statistic: What is summed.

    Attributes:
        seconds: Wall time spent summing (on an accelerator: launching).
        steps: Steps folded.
    """

    def __init__(self, statistic: Statistic) -> None:
        self.statistic = statistic
        self.anchor = torch.empty(0, requires_grad=True)
        self.staged: Sums = {}
        self.sums: Sums = {}
        self.finite: dict[str, Tensor] = {}
        self.since: dict[str, int] = {}  # the step that a path's count begins at, which for the others is ``begun``
        self.begun = 0
        self.seconds = 0.0
        self.steps = 0

    @torch.compiler.disable
    def tap(self, path: LowRankPath, x: Tensor, result: Tensor) -> Tensor:
        """Return ``result`` with a tap that shows the path's source and destination gradient."""
        return Tap.apply(result, x, self.anchor, partial(self._record, path))

    def _record(self, path: LowRankPath, x: Tensor, g: Tensor) -> None:
        began = time.perf_counter()
        wide = torch.float64 if torch.float64 in (x.dtype, g.dtype) else torch.float32
        with torch.autocast(x.device.type, enabled=False):
            added = self.statistic.contribution(path, x.to(wide), g.to(wide))
        staged = self.staged.get(path.name)
        self.staged[path.name] = added if staged is None else tuple(a + b for a, b in zip(staged, added, strict=True))
        self.seconds += time.perf_counter() - began

    def drop(self) -> None:
        """Forget what was collected since the last fold: the step was skipped."""
        self.staged = {}

    def keep(self, names: set[str]) -> None:
        """Forget all but the named paths: an edit gave the others new end points, and their counts begin anew."""
        for name in names - self.sums.keys():
            self.since.setdefault(name, self.begun)
        self.begun = self.steps
        for collected in (self.staged, self.sums, self.finite):
            for name in set(collected) - names:
                del collected[name]
        for name in self.since.keys() - names:
            del self.since[name]

    def fold(self, loss_scale: float = 1.0) -> None:
        """Add the step's sums, divided by the factor that the loss was scaled by, where they are finite."""
        began = time.perf_counter()
        for name in self.sums.keys() - self.staged.keys():
            self.finite[name] += 1
        for name, tensors in self.staged.items():
            finite = torch.stack([tensor.isfinite().all() for tensor in tensors]).all()
            if name not in self.sums:
                self.sums[name] = tuple(torch.zeros_like(tensor) for tensor in tensors)
                before = self.absent(f"finite/{name}")
                self.finite[name] = torch.full((), before, dtype=torch.float64, device=finite.device)
            for total, tensor in zip(self.sums[name], tensors, strict=True):
                total += torch.where(finite, tensor / loss_scale, torch.zeros_like(tensor))
            self.finite[name] += finite
        self.staged = {}
        self.steps += 1
        self.seconds += time.perf_counter() - began

    def means(self) -> Sums:
        """Return the mean over all steps and processes; a path with no finite step gets NaN."""
        self._take(with_those_of_others(dict(self.tensors()), self.absent), {})
        for name, totals in self.sums.items():  # the same order in every process
            sum_over_processes_([*totals, self.finite[name]])
        return {
            name: tuple(total / self.finite[name].to(total.dtype) for total in totals)
            for name, totals in self.sums.items()
        }

    def absent(self, key: str) -> float:
        """Return what ``tensors`` would yield under a key for a path that no step has come to here."""
        what, _, name = key.partition("/")
        return float(self.steps - self.since.get(name, self.begun)) if what == "finite" else 0.0

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all sums by name, for a checkpoint."""
        for name, totals in self.sums.items():
            yield f"finite/{name}", self.finite[name]
            for position, total in enumerate(totals):
                yield f"sum{position}/{name}", total

    def restore(self, tensors: dict[str, Tensor], steps: int, devices: dict[str, torch.device]) -> None:
        """Take back what ``tensors`` yielded: the first process what all of them summed, the others nothing."""
        self.steps = steps
        self.begun = steps - steps * world_size() if rank() == 0 else steps
        self._take(tensors, devices)

    def _take(self, tensors: dict[str, Tensor], devices: dict[str, torch.device]) -> None:
        self.sums, self.finite = {}, {}
        for key in sorted(tensors):
            what, _, name = key.partition("/")
            tensor = tensors[key].to(devices.get(name, tensors[key].device))
            if what == "finite":
                self.finite[name] = tensor
            else:
                self.sums[name] = (*self.sums.get(name, ()), tensor)
