"""Static search only: what a run's first search would see and choose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.utils.data import DataLoader

import rankwise
from rankwise.rules.records import SearchRecord
from rankwise.runs.building.job import Job, build
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.recipe import Recipe
from rankwise.runs.results.exporting import check_no_adapter
from rankwise.tasks import TaskData


@dataclass(frozen=True)
class ScoreTable:
    """One search over an untrained model.

    Args:
        scores: Each path's score; none where it was not finite.
        costs: Each path's parameters.
        chosen: The paths that fit the budget.
        record: The whole record, as in a run's history.
    """

    scores: dict[str, float | None]
    costs: dict[str, int]
    chosen: list[str]
    record: SearchRecord


def score(recipe: Recipe, *, data: TaskData | None = None, out: str | Path | None = None) -> ScoreTable:
    """Score every path on training batches by the recipe's proxy and choose under its budget; nothing is trained.

    Args:
        recipe: Names the model, the data and the search.
        data: Prepared data in place of what ``recipe.data`` names.
        out: Where to write the choice as an untrained plain LoRA adapter, for tools that take a folder to start from.

    Raises:
        ValueError: The method has no search, or ``out`` has an adapter already.
    """
    if out is not None:
        check_no_adapter(out)
    if recipe.method.name == "lor2c":
        raise ValueError(
            "method.name='lor2c' chooses while it trains, by the singular values of what was learnt: before training "
            "there is nothing to score; with 'heterolora' and shortcuts: [layer] score tells which blocks get such a "
            "path"
        )
    if recipe.method.name != "heterolora":
        raise ValueError(f"method.name={recipe.method.name!r} has no paths to choose among: score needs 'heterolora'")
    method = recipe.method.model_copy(update={"mode": "static", "warmup_searches": 0, "scoring": "probe"})
    with quiet():
        job = build(recipe.model_copy(update={"method": method}), data)
        job.model.to(PartialState().device)
        compute_loss = job.data.loss if job.data.loss_func is not None else None
        allocator = rankwise.Allocator(job.model, batches=training_batches(job), compute_loss=compute_loss)
        record = allocator.search()
        costs = {name: path.num_parameters for name, path in rankwise.named_paths(job.model).items()}
        rankwise.detach(job.model)
        if out is not None:
            rankwise.export_lora(job.model, out)
    return ScoreTable(record.scores, costs, record.chosen, record)


class _Batches(Iterable[Any]):
    """Shuffled training batches; the same ones each time it is iterated."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __iter__(self) -> Iterator[Any]:
        loader = DataLoader(
            self.job.data.train,
            batch_size=self.job.recipe.training.batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(self.job.recipe.seed),
            collate_fn=self.job.data.collator,
        )
        for batch in loader:
            yield {name: value.to(self.job.model.device) for name, value in batch.items()}


def training_batches(job: Job) -> Iterable[Any]:
    """Return the job's training batches, to be iterated any number of times."""
    return _Batches(job)
