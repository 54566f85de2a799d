"""One training run, from a recipe to a folder with the adapter and the figures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from transformers import Trainer, TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback

import rankwise
from rankwise.baselines import save_truncated
from rankwise.errors import in_recipe
from rankwise.files import delete, write_json_atomic
from rankwise.passes import watched_by
from rankwise.rules.records import searches
from rankwise.runs.building.job import Job, build, make_trainer, start_, training_arguments
from rankwise.runs.building.models import load_state
from rankwise.runs.building.saving import written
from rankwise.runs.checkpoints import seconds_before
from rankwise.runs.folder import LENGTH, RunFolder
from rankwise.runs.progress import RichProgress, follow, quiet
from rankwise.runs.recipes.recipe import Recipe
from rankwise.runs.training import metrics
from rankwise.runs.training.announce import Announce
from rankwise.runs.training.card import describe_run
from rankwise.runs.training.prefix import kept_prefix
from rankwise.runs.training.records import HistoryFile, Saved, Settle
from rankwise.runs.training.resuming import check_length, continued, tell_changes
from rankwise.runs.training.spectra import watchers
from rankwise.tasks import TaskData, digest_of

AT_THE_END = "from the last checkpoint"


@dataclass(frozen=True)
class Result:
    """A finished run: its folder and the content of its ``metrics.json``."""

    out: Path
    metrics: dict[str, Any]
    trained: bool = True  # False: the folder already held the finished run
    main_process: bool = True


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    data: TaskData | None = None,
    command: str | None = None,
) -> Result:
    """Train with the Hugging Face Trainer, report the last and the dev-selected checkpoint, save one of them.

    Validation data is scored at the end only; the dev split, carved from the training data, picks the checkpoint.

    Args:
        recipe: What to run.
        out: The run folder.
        resume: Continue the run in ``out`` from its newest whole checkpoint. The recipe must be the one it has, but for
            its length and what is kept and reported; with another length a finished run goes on.
        overwrite: Delete the run in ``out`` once the new one has made a step.
        console: Where the run says what it does, and the progress bar goes; none shows nothing.
        callbacks: More callbacks for the Trainer.
        data: Prepared data in place of what ``recipe.data`` names.
        command: The command line, for ``metrics.json``.

    Raises:
        FileNotFoundError: ``resume`` without a run to resume.
        PermissionError: The folder can't be written to.
        ValueError: The folder holds a run, its files are damaged, or the recipe does not fit the model or the data.
    """
    folder = RunFolder(Path(out).absolute())
    folder.check(recipe, resume=resume, overwrite=overwrite)
    changes = folder.changes(recipe) if resume else {}
    if resume and folder.finished and not set(LENGTH) & set(changes):
        return Result(folder.root, folder.figures(), trained=False)
    with quiet():
        job = build(recipe, data)
        arguments = training_arguments(recipe, job.data, folder.checkpoints)
        process = PartialState()
        process.wait_for_everyone()
        shown = console if process.is_main_process else None
        rows = digest_of(job.data.train, job.data.dev)
        checkpoint = continued(folder, job, rows, shown) if resume else None
        if set(LENGTH) & set(changes):
            check_length(job, checkpoint)
        if process.is_main_process and not resume:  # only now: until here a mistake costs nothing that was there
            folder.start(recipe)
        if process.is_main_process and changes:
            tell_changes(changes, shown)
            folder.go_on(recipe)
        process.wait_for_everyone()
        saved = Saved(seconds_before(checkpoint), recipe.training.keep_checkpoints, rows)
        history = [HistoryFile(folder.history)] if job.has_paths else []
        settles = [Settle(folder)] if process.is_main_process else []
        with _progress(shown, job) as bars, _withdrawn(settles, resume), kept_prefix(job, folder, shown):
            own = [*settles, *history, *watchers(job.model, folder), *bars]
            trainer = make_trainer(job, arguments, folder, [*own, *callbacks, saved])
            with in_recipe():
                start_(job, trainer, checkpoint)
                at_start = metrics.parameters(job)["trainable"]
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        _finish(trainer, job, folder, saved.seconds, command, at_start)
        process.wait_for_everyone()
    return Result(folder.root, folder.figures(), main_process=process.is_main_process)


@contextmanager
def _withdrawn(settles: Sequence[Settle], resume: bool) -> Iterator[None]:
    """Leave the folder as it was if a fresh run fails before its first step: the mistake costs nothing."""
    try:
        yield
    except BaseException:
        for settle in settles:
            if not resume and not settle.done:
                settle.folder.withdraw()
        raise


@contextmanager
def _progress(console: Console | None, job: Job) -> Iterator[list[TrainerCallback]]:
    if console is None:
        yield []
        return
    bar = RichProgress(console, job.data.headline)
    try:
        with watched_by(follow(bar.bar)):
            yield [Announce(console, job), bar]
    finally:
        bar.close()


def _finish(
    trainer: Trainer, job: Job, folder: RunFolder, train_seconds: float, command: str | None, at_start: int
) -> None:
    """Measure the last and the dev-selected checkpoint, save the one asked for, write the figures last."""
    trainer.remove_callback(TensorBoardCallback)  # the final figures belong to no step
    history = rankwise.history(job.model) if job.has_paths else []
    writes = trainer.is_world_process_zero()
    if job.has_paths and writes:
        with written("history", folder.history, AT_THE_END):
            HistoryFile(folder.history).write(history)
    log = list(trainer.state.log_history)
    last_step = trainer.state.global_step
    best_step = trainer.state.best_global_step or last_step
    begun = at_start or (history[0].counts["enabled"] if history else 0)  # ranks are chosen when nothing trains yet
    counts = {**metrics.parameters(job), "at_start": begun}
    last = metrics.measure(trainer, job, last_step)
    picked = {"last": metrics.chosen(job)}
    if job.recipe.select == "last" and writes:
        save(job, folder)
    selected = last
    if best_step != last_step:
        load_state(job.model, folder.checkpoints / f"checkpoint-{best_step}")
        selected = metrics.measure(trainer, job, best_step)
    picked["dev_selected"] = metrics.chosen(job)
    if job.recipe.select == "dev" and writes:
        save(job, folder)
    figures = {
        **metrics.identity(job, command),
        "data": job.data.counts(),
        "metrics": {
            "last": last,
            "dev_selected": selected,
            "per_epoch": metrics.dev_by_epoch(log),
            "log": metrics.training_log(log),
        },
        "parameters": counts,
        "seconds": metrics.seconds(train_seconds, log, history),
        "searches": len(searches(history)),
        "edits": metrics.edits(history),
        "chosen": picked,
    }
    if writes:
        with written("figures", folder.metrics, AT_THE_END):
            describe_run(folder.adapter, figures, job.recipe.license)
            write_json_atomic(folder.metrics, figures)


def save(job: Job, folder: RunFolder) -> None:
    """Write the adapter (or the whole model) with its tokenizer, in one move; DyLoRA's as it is evaluated.

    Raises:
        OSError: It can't be written.
    """
    temporary = folder.root / ".adapter"
    rank = job.recipe.method.eval_rank
    with written("trained model", folder.adapter, AT_THE_END):
        delete(temporary)
        if rank is None:
            job.model.save_pretrained(temporary)
        else:
            save_truncated(job.model, temporary, rank)
        job.data.tokenizer.save_pretrained(temporary)
        delete(folder.adapter)
        os.replace(temporary, folder.adapter)
