"""Static search only: what a run's first search would see and choose."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import TrainerCallback

import rankwise
from rankwise.rules.records import SearchRecord, searches
from rankwise.runs.building.job import build, make_trainer, training_arguments
from rankwise.runs.folder import RunFolder
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
    training = recipe.training.model_copy(update={"report_to": []})
    recipe = recipe.model_copy(update={"method": method, "training": training})
    with quiet(), TemporaryDirectory() as scratch:
        job = build(recipe, data)
        arguments = training_arguments(recipe, job.data, Path(scratch))
        trainer = make_trainer(job, arguments, RunFolder(Path(scratch)), [StopBeforeTheFirstStep()])
        with suppress(Searched):
            trainer.train()
        (record,) = searches(rankwise.history(job.model))
        costs = {name: path.num_parameters for name, path in rankwise.named_paths(job.model).items()}
        rankwise.detach(job.model)
        if out is not None:
            rankwise.export_lora(job.model, out)
    return ScoreTable(record.scores, costs, record.chosen, record)


class Searched(Exception):
    """The first search is done, and nothing is to be trained."""


class StopBeforeTheFirstStep(TrainerCallback):
    """Leaves training when the first search has been made: the run itself says what its first search sees."""

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Leave."""
        raise Searched
