"""A worker: takes cells, trains them, gives back what others lost; and how many of them are started."""

from __future__ import annotations

import gc
import logging
import math
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from transformers import TrainerCallback

from rankwise.runs.building.lengths import fitting_tokenizer
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.recipe import ModelSpec, Recipe, parse_recipe
from rankwise.runs.training.train import train
from rankwise.study.folder import StudyFolder
from rankwise.study.plan import Cell, Plan, Planner
from rankwise.study.queue import DEATHS, HEARTBEAT, Claim, Queue, default_storage
from rankwise.study.status import outcome
from rankwise.tasks import DataSpec, TaskData, load_task

logger = logging.getLogger("rankwise")
DEVICES = "CUDA_VISIBLE_DEVICES"
PATIENCE = 2.0  # seconds between two looks for a cell


class TakenOver(RuntimeError):
    """Another worker has this cell: this one was taken for dead."""


@dataclass(frozen=True)
class Work:
    """What a worker has to know; plain values, so that it travels to another process.

    Args:
        root: The study's folder.
        storage: The URL of the queue; none is SQLite in the folder.
        heartbeat: Seconds between signs of life.
        number: Of this worker.
        workers: How many there are on this machine.
        cpus: Cores of a cell as a Ray task.
        gpus: Accelerators of a cell as a Ray task.
        only: Patterns of the names of groups; cells of others are left to other workers. None: all.
    """

    root: Path
    storage: str | None = None
    heartbeat: int = HEARTBEAT
    number: int = 0
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    only: tuple[str, ...] = ()

    def queue(self, folder: StudyFolder) -> Queue:
        """Open the queue; the first time only under the folder's lock."""
        return Queue(self.storage or default_storage(self.root), folder.queue, heartbeat=self.heartbeat)


def refresh(folder: StudyFolder, planner: Planner, queue: Queue) -> Plan:
    """Give back lost cells and add those that have become known; call it under the folder's lock."""
    queue.give_back_lost()
    plan = folder.plan(planner)
    names = {cell.name: cell for cell in plan.cells if folder.loss(cell) is None}
    given_up = queue.fill(names)
    for name in given_up:
        folder.fail(names[name], f"{DEATHS} workers died on it without a word: out of memory, killed, or a crash")
    return folder.plan(planner) if given_up else plan


def take(folder: StudyFolder, queue: Queue, only: Sequence[str] = ()) -> tuple[Planner, Plan, Claim | None]:
    """Bring plan and queue up to date and take a cell of the groups asked for, all under the folder's lock.

    The plan returned is that of these groups; there is no cell where none of them waits.

    The plan is read anew each time: another process may have added cells to it, and to the queue.
    """
    with folder.lock():
        planner = folder.planner()
        plan = refresh(folder, planner, queue).of(only)
        return planner, plan, queue.claim({cell.name for cell in plan.cells} if only else None)


def work(task: Work, console: Console | None = None) -> None:
    """Take cells until all of the study, or of the groups asked for, have come to their end.

    Args:
        task: What to work on.
        console: Where a line for each cell goes.
    """
    folder = StudyFolder(task.root)
    with folder.lock():
        queue = task.queue(folder)
    with queue:
        while True:
            planner, plan, claim = take(folder, queue, task.only)
            if claim is not None:
                cell = next((cell for cell in plan.cells if cell.name == claim.name), None)
                _take(folder, queue, claim, cell)
                if console is not None and cell is not None and folder.loss(cell) is not None:
                    plan = folder.plan(planner).of(task.only)
                    ours = {each.name for each in plan.cells}
                    workers = 1 + sum(name in ours for name in queue.names("RUNNING"))
                    console.print(outcome(folder, plan, cell, workers=workers), highlight=False, soft_wrap=True)
            elif all(folder.loss(cell) is not None for cell in plan.cells):
                return
            else:
                time.sleep(min(PATIENCE, task.heartbeat))


def _take(folder: StudyFolder, queue: Queue, claim: Claim, cell: Cell | None) -> None:
    """Run a claimed cell; what it fails with is kept in its folder, and the next one is run."""
    loss = math.inf if cell is None else folder.loss(cell)  # none: of an arm or rate that is gone
    if cell is not None and loss is None:
        stop = Stop()
        try:
            with queue.alive(claim, stop.ask):
                run_cell(folder, cell, callbacks=[stop])
        except TakenOver as error:
            logger.warning("%s: %s", cell.name, error)
            return
        except KeyboardInterrupt:
            queue.put_back(claim)
            raise
        loss = folder.loss(cell)
    queue.finish(claim, math.inf if loss is None else loss)


class Stop(TrainerCallback):
    """Ends a training that has become another worker's."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self) -> None:
        """Ask for the end, from whichever thread."""
        self.asked = True

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Leave."""
        if self.asked:
            raise TakenOver("taken over by another worker, since this one gave no sign of life")


def run_cell(folder: StudyFolder, cell: Cell, *, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Train a cell, from its newest checkpoint if there is one; an error is kept in its folder.

    Raises:
        TakenOver: Another worker has it.
    """
    run = folder.run(cell)
    try:
        recipe = parse_recipe(cell.content)
        data = load_data(recipe)
        if cell.role != "report":  # what chooses never sees the split that is reported
            if data.validation is None and not data.extra:
                raise ValueError(
                    "what is chosen by the dev split can't be reported on it, and the data has no other split: give "
                    "data.validation_fraction=0.1 to set that share of train apart"
                )
            data = replace(data, validation=None, extra={})
        resume = run.config.is_file()
        train(recipe, run.root, resume=resume, callbacks=callbacks, data=data, command=folder.command)
        folder.error_file(cell).unlink(missing_ok=True)
    except TakenOver:
        raise
    except Exception as error:  # noqa: BLE001 (whatever one cell fails with, the others are run; it is kept and told)
        folder.fail(cell, f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}")
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_data(recipe: Recipe) -> TaskData:
    """Return a recipe's data; cells that follow each other mostly have the same, so the last one stays."""
    return _data(recipe.model.model_dump_json(), recipe.data.model_dump_json())


@lru_cache(maxsize=1)
def _data(model: str, data: str) -> TaskData:
    with quiet():
        spec = DataSpec.model_validate_json(data)
        return load_task(spec, fitting_tokenizer(ModelSpec.model_validate_json(model), spec))


def run_local(task: Work, console: Console) -> None:
    """Run a study on this machine with ``task.workers`` processes; with one, in this process."""
    if task.workers == 1:
        work(task, console)
        return
    context = multiprocessing.get_context("spawn")
    width = console.width
    started = [
        context.Process(target=_worker, args=(replace(task, number=number), width)) for number in range(task.workers)
    ]
    for number, process in enumerate(started):
        with device_of(number):
            process.start()
    _wait(started)
    died = [process.exitcode for process in started if process.exitcode]
    if died:
        raise RuntimeError(
            f"{len(died)} of {len(started)} workers ended before their time (exit codes {died}): the same command goes "
            "on where they stopped"
        )


def _wait(started: Sequence[Any]) -> None:
    try:
        for process in started:
            process.join()
    except KeyboardInterrupt:
        for process in started:
            process.terminate()
        for process in started:
            process.join()
        raise


def _worker(task: Work, width: int) -> None:
    """Run in a process of its own, with its share of the cores."""
    signal.signal(signal.SIGTERM, _interrupt)
    torch.set_num_threads(max(1, torch.get_num_threads() // task.workers))
    try:
        work(task, Console(width=width, soft_wrap=True))
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGTERM) from None


@contextmanager
def device_of(number: int) -> Iterator[None]:
    """Show a process that is started inside one accelerator; it reads that when it imports torch."""
    before, devices = os.environ.get(DEVICES), _visible_devices()
    if devices:
        os.environ[DEVICES] = devices[number % len(devices)]
    try:
        yield
    finally:
        if before is not None:
            os.environ[DEVICES] = before
        elif devices:
            del os.environ[DEVICES]


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _visible_devices() -> list[str]:
    named = os.environ.get(DEVICES)
    if named is not None:
        return [device for device in named.split(",") if device]
    return [str(device) for device in range(torch.cuda.device_count())]
