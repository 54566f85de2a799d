"""The commands that run many runs: ``rankwise study`` and ``rankwise tune``.

Beside the command line, and like it without anything of ``rankwise`` until a command runs.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from rankwise_exits import explained
from rankwise_options import Debug, Overrides, RecipeFile, console

study_commands = typer.Typer(
    name="study",
    help="Run many runs that answer one question, and say what they can tell: rates chosen per arm, fresh seeds.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
GOES_ON = "the same command goes on with it"
TUNE_EXAMPLES = (
    "Examples:\n\n"
    "[bold]rankwise tune mine.yaml --cost 4 --out tuned[/]\n\n"
    "[bold]rankwise tune minilm/mrpc-uniform --set data.data_dir=data --without LoR2C --seeds 5[/]"
)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The study's folder.", show_default=False)]
Workers = Annotated[int, typer.Option(help="Processes on this machine.", min=1)]
Storage = Annotated[
    str | None,
    typer.Option(
        envvar="RANKWISE_STORAGE",
        help="The queue: sqlite:///FILE or postgresql://USER@HOST/NAME; by default SQLite in the folder.",
        show_default=False,
    ),
]
Heartbeat = Annotated[
    int, typer.Option(help="Seconds between signs of life; after three without one a cell is another's.", min=1)
]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Run failed runs again.")]
Dry = Annotated[
    bool, typer.Option("--dry-run", help="Two steps of each recipe on a tiny stand-in, and how many runs there are.")
]


def _command() -> str:
    """Return the command line; without ``--only``, so that what a table names runs all that is in it."""
    given, whole = iter(sys.argv[1:]), []
    for word in given:
        if word == "--only":
            next(given, None)
        elif not word.startswith("--only="):
            whole.append(word)
    return shlex.join(["rankwise", *whole])


@study_commands.command(
    epilog="Examples:\n\n"
    "[bold]rankwise study run study.yaml --out studies/mine --workers 2[/]\n\n"
    "A part of it first: [bold]rankwise study run study.yaml --out studies/mine --only 'all_linear-*'[/]\n\n"
    "On many machines that share the folder, the same command on each: "
    "[bold]rankwise study run study.yaml --out /shared/mine --storage postgresql://me@host/studies[/]"
)
def run(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A study (YAML).", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="The study's folder; by default study-runs/<its name>.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GROUPS",
            help="Run these groups now, * for any part of a name; may be given again. Without it: all that are left.",
            show_default=False,
        ),
    ] = None,
    workers: Workers = 1,
    storage: Storage = None,
    engine: Annotated[
        str, typer.Option(metavar="local|ray", help="ray: the runs are tasks of a Ray cluster (the extra `ray`).")
    ] = "local",
    cpus: Annotated[float, typer.Option(help="Cores of a run as a Ray task.", min=0)] = 1,
    gpus: Annotated[float, typer.Option(help="Accelerators of a run as a Ray task.", min=0)] = 0,
    heartbeat: Heartbeat = 30,
    retry_failed: Retry = False,
    dry: Dry = False,
    debug: Debug = False,
) -> None:
    """Run a study, or go on with it: what has finished stays. Exit code 1 where runs failed."""
    with explained(debug, on=GOES_ON):
        from rankwise.study.spec import load_study

        checked = load_study(study, overrides or [])
        from rankwise.study.formats import terminal
        from rankwise.study.running import dry_run_study, failures_told, run_study
        from rankwise.study.tables import study_tables
        from rankwise.study.working import Work

        if dry:
            dry_run_study(checked, console, only or ())
            return
        root = out or Path("study-runs") / study.stem
        task = Work(root, storage, heartbeat, workers=workers, cpus=cpus, gpus=gpus, only=tuple(only or ()))
        folder = run_study(checked, task, console=console, command=_command(), engine=engine, retry_failed=retry_failed)
        with failures_told(folder, checked, task.only):
            for table in study_tables(folder, checked):
                console.print(terminal(table))
            console.print(f"tables for elsewhere: rankwise study table {escape(str(root))}", highlight=False)


@study_commands.command(epilog="Example: [bold]rankwise study status study-runs/mine[/]")
def status(folder: Folder, storage: Storage = None, debug: Debug = False) -> None:
    """Say how far a study or a race is: cells by state, errors, the time left."""
    with explained(debug):
        from rankwise.study.running import study_status

        console.print(study_status(folder, storage))


@study_commands.command(
    epilog="Examples:\n\n"
    "[bold]rankwise study table study-runs/mine[/]\n\n"
    "[bold]rankwise study table study-runs/mine --format latex --out table.tex[/]"
)
def table(
    folder: Folder,
    table_format: Annotated[
        str, typer.Option("--format", metavar="markdown|csv|latex", help="Of the text.")
    ] = "markdown",
    out: Annotated[Path | None, typer.Option(help="Write it to a file.", show_default=False)] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="ARM", help="Pair the others with this arm, not the study's own.", show_default=False),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a study's tables: means, paired differences with intervals, what could have been seen."""
    with explained(debug):
        from rankwise.study.running import write_tables

        text = write_tables(folder, table_format=table_format, out=out, baseline=baseline)
        if out is None:
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            console.print(f"tables: [bold]{escape(str(out))}[/]", soft_wrap=True, highlight=False)


def tune(
    recipe: RecipeFile,
    out: Annotated[
        Path | None, typer.Option(help="The race's folder; by default tuned/<recipe>.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    cost: Annotated[float, typer.Option(help="The most that the race may cost, in whole runs.", min=0.1)] = 4.0,
    rates: Annotated[int, typer.Option(help="Learning rates per arm, around the recipe's.", min=1)] = 3,
    seeds: Annotated[int, typer.Option(help="Fresh seeds, of the winner and of the default.", min=1)] = 3,
    budget: Annotated[
        int | None, typer.Option(help="Parameters of each arm; by default the recipe's.", show_default=False, min=1)
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="ARM", help="Leave an arm out; may be given again.")
    ] = None,
    workers: Workers = 1,
    storage: Storage = None,
    heartbeat: Heartbeat = 30,
    retry_failed: Retry = False,
    debug: Debug = False,
) -> None:
    """Find out which targets, method and rate pay on this recipe's task, at a price that is stated before.

    Exit code 1 where runs failed; the report is written all the same.
    """
    with explained(debug, on=GOES_ON):
        from rankwise.runs.recipes.recipe import load_recipe

        checked = load_recipe(recipe, overrides or [])
        from rankwise.study.tuning import Wish
        from rankwise.study.tuning import tune as race
        from rankwise.study.working import Work

        root = out or Path("tuned") / Path(recipe).stem
        wish = Wish(cost, rates, seeds, budget, tuple(without or ()))
        task = Work(root, storage, heartbeat, workers=workers)
        race(checked, task, wish, console=console, command=_command(), retry_failed=retry_failed)
