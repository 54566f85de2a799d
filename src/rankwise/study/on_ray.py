"""The cells of a study as tasks of a Ray cluster, which places them, and runs them again where a machine is lost."""

from __future__ import annotations

import logging
from typing import Any

from rich.console import Console

from rankwise.study.folder import StudyFolder
from rankwise.study.plan import Cell
from rankwise.study.queue import DEATHS
from rankwise.study.status import outcome
from rankwise.study.working import Work, run_cell


def train_cell(root: str, cell: tuple[Any, ...]) -> None:
    """Train a cell in a Ray worker; the study's folder is one that all machines share."""
    from pathlib import Path

    run_cell(StudyFolder(Path(root)), Cell(*cell))


def run_on_ray(task: Work, console: Console) -> None:
    """Run a study's cells as Ray tasks on the cluster that ``RAY_ADDRESS`` names, or on this machine.

    Ray is the queue here: this process hands out what is known, and more as results come in. A task takes
    ``task.cpus`` cores and ``task.gpus`` accelerators.

    Args:
        task: Where the study is and what a cell takes.
        console: Where a line for each cell goes.

    Raises:
        ModuleNotFoundError: Ray is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("--engine ray needs Ray: pip install 'rankwise[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    folder = StudyFolder(task.root.absolute())
    remote = ray.remote(num_cpus=task.cpus, num_gpus=task.gpus, max_retries=DEATHS - 1)(train_cell)
    running: dict[Any, Cell] = {}
    while True:
        planner = folder.planner()  # another process may have added cells
        plan = folder.plan(planner).of(task.only)
        taken = {cell.name for cell in running.values()}
        for cell in plan.cells:
            if cell.name not in taken and folder.loss(cell) is None:
                running[remote.remote(str(folder.root), tuple(cell))] = cell
        if not running:
            return
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            cell = running.pop(reference)
            try:
                ray.get(reference)
            except ray.exceptions.RayError as error:
                folder.fail(cell, f"{type(error).__name__}: {error}")
            if folder.loss(cell) is None:
                folder.fail(cell, "its task ended without a result")
            console.print(
                outcome(folder, folder.plan(planner).of(task.only), cell, workers=len(running) + 1),
                highlight=False,
                soft_wrap=True,
            )
