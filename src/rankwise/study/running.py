"""What the commands do: start a study or go on with it, say how far it is, and write its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.markup import escape

from rankwise.errors import check_choice
from rankwise.files import write_text_atomic
from rankwise.runs.dryrun import dry_run
from rankwise.runs.recipes.recipe import parse_recipe
from rankwise.study.folder import StudyFolder
from rankwise.study.formats import FORMATS
from rankwise.study.plan import Planner, Study, fits
from rankwise.study.queue import check_installed
from rankwise.study.status import error_line, status_table
from rankwise.study.tables import study_tables
from rankwise.study.working import Work, refresh, run_local

ENGINES = ("local", "ray")


def run_study(
    planner: Planner,
    task: Work,
    *,
    console: Console,
    command: str,
    engine: str = "local",
    retry_failed: bool = False,
) -> StudyFolder:
    """Run every cell of a study, or of the groups asked for, that has not finished; any number of processes may help.

    Args:
        planner: What is run.
        task: Where, by which storage and with how many workers.
        console: Where the progress goes.
        command: The command line, for the tables.
        engine: ``local``, or ``ray`` for the tasks of a Ray cluster.
        retry_failed: Run cells that failed again.

    Raises:
        ModuleNotFoundError: Optuna, or Ray, is not installed.
        ValueError: The folder holds another study, a pattern fits no group, or the storage can't be opened.
    """
    check_choice("--engine", engine, ENGINES)
    _check_only(task.only, planner)
    check_installed()
    folder = StudyFolder(task.root)
    with folder.lock():  # one process makes the storage's tables and fills the queue
        folder.start(planner, command)
        failed = folder.forget_errors(planner, task.only) if retry_failed else []
        if engine == "local":
            with task.queue(folder) as queue:
                for name in failed:
                    queue.forgive(name)
                refresh(folder, planner, queue)
    plan = folder.plan(planner).of(task.only)
    done = sum(folder.loss(cell) is not None for cell in plan.cells)
    console.print(
        f"{len(plan.cells)} runs known by now, {done} of them done; figures in {escape(str(folder.root))}",
        highlight=False,
    )
    _engine(engine)(task, console)
    for note in folder.plan(planner).notes:
        console.print(f"[yellow]{escape(note)}[/]", highlight=False, soft_wrap=True)
    return folder


def _check_only(only: Sequence[str], planner: Planner) -> None:
    names = [group.name for group in planner.groups]
    for pattern in only:
        if not any(fits(name, [pattern]) for name in names):
            raise ValueError(
                f"--only {pattern!r} fits no group: they are {', '.join(names)}, and * stands for any part of a name"
            )


def check_failed(folder: StudyFolder, planner: Planner, only: Sequence[str] = ()) -> None:
    """Raise where runs of the groups asked for failed, with their names.

    Raises:
        RuntimeError: Some did.
    """
    cells = folder.plan(planner).of(only).cells
    failed = [cell for cell in cells if folder.error_file(cell).is_file()]
    if failed:
        told = "; ".join(f"{cell.name}: {error_line(folder, cell)}" for cell in failed)
        raise RuntimeError(f"{len(failed)} of {len(cells)} runs failed ({told}): --retry-failed runs them again")


@contextmanager
def failures_told(folder: StudyFolder, planner: Planner, only: Sequence[str] = ()) -> Iterator[None]:
    """Raise as ``check_failed`` does once the tables made inside are shown, or can't be made for want of runs."""
    try:
        yield
    except ValueError:
        check_failed(folder, planner, only)
        raise
    check_failed(folder, planner, only)


def _engine(name: str) -> Callable[[Work, Console], None]:
    if name == "local":
        return run_local
    from rankwise.study.on_ray import run_on_ray

    return run_on_ray


def dry_run_study(study: Study, console: Console, only: Sequence[str] = ()) -> None:
    """Train the recipe of every group asked for two steps on a tiny stand-in, and say how many runs they have.

    Args:
        study: The study.
        console: Where to say it.
        only: Patterns of the names of groups; none: all.

    Raises:
        ValueError: A pattern fits no group, or what training a recipe would raise.
    """
    _check_only(only, study)
    study = study.model_copy(update={"groups": [group for group in study.groups if fits(group.name, only)]})
    for group in study.groups:
        dry_run(parse_recipe(group.content))
        console.print(f"[green]{escape(group.name)}: went through[/]", highlight=False)
    console.print(counted(study), highlight=False)


def counted(study: Study) -> str:
    """Return how many runs a study has."""
    chooses = len(study.plan({}).cells)
    fixed = sum(group.rates is None for group in study.groups) * len(study.seeds.report)
    then = len(study.groups) * len(study.seeds.report)
    return (
        f"{len(study.groups)} groups: {chooses - fixed} runs to choose rates (more where a grid has to grow), "
        f"{then} for the report"
    )


def write_tables(
    root: Path, *, table_format: str = "markdown", out: Path | None = None, baseline: str | None = None
) -> str:
    """Return a study's tables in a format, written to ``out`` if it is given.

    Args:
        root: The study's folder.
        table_format: A name in ``FORMATS``.
        out: The file to write.
        baseline: The arm that the others are paired with; by default the study's own.

    Raises:
        FileNotFoundError: There is no study.
        ValueError: No run of the report has finished, or there is no such format or arm.
    """
    check_choice("--format", table_format, FORMATS)
    folder = StudyFolder(root)
    planner = folder.planner()
    if not isinstance(planner, Study):
        raise ValueError(f"{root} holds a race, whose tables are in {root / 'report.md'}: this is for a study")
    text = FORMATS[table_format](study_tables(folder, planner, baseline=baseline))
    if out is not None:
        write_text_atomic(out, text)
    return text


def study_status(root: Path, storage: str | None = None) -> Group:
    """Return how far a study is, as a table for the terminal.

    Raises:
        FileNotFoundError: There is no study.
    """
    folder = StudyFolder(root, lenient=True)
    planner = folder.planner()
    task = Work(root, storage)
    running: list[str] = []
    if storage is not None or (root / "queue.db").is_file():
        check_installed()
        with folder.lock(), task.queue(folder) as queue:
            running = queue.names("RUNNING")
    plan = folder.plan(planner)
    bare = [f"{name} has no figures of any split: it can't be compared" for name in folder.without_figures(plan)]
    return status_table(folder, plan._replace(notes=[*plan.notes, *bare]), running=running)
