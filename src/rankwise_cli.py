"""The command line. Heavy imports wait inside the commands, so that ``--help`` is quick.

A module beside the package: importing anything of ``rankwise`` registers its methods, and so imports PEFT and torch.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from safetensors import SafetensorError

RUN_FAILED, USER_ERROR = 1, 2

app = typer.Typer(
    name="rankwise",
    help="Fine-tune a transformer on a fixed budget of low-rank parameters and let the budget go where it pays.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console()
errors = Console(stderr=True)

RecipeFile = Annotated[Path, typer.Argument(help="A recipe (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be given again.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete the run that the folder already holds.")]
Seed = Annotated[int, typer.Option(help="Seeds everything that is drawn.", min=0)]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@contextmanager
def _explained(debug: bool) -> Iterator[None]:
    """Turn an error into one red line and an exit code: 2 for the user's mistake, 1 for a run that failed."""
    try:
        yield
    except (ValueError, SafetensorError, OSError, RuntimeError, ModuleNotFoundError, KeyboardInterrupt) as error:
        if debug:
            raise
        mistakes = (ValueError, SafetensorError, FileNotFoundError, NotADirectoryError, ModuleNotFoundError)
        mistake = isinstance(error, mistakes)
        interrupted = isinstance(error, KeyboardInterrupt)
        text = "interrupted; a run with a checkpoint goes on with --resume" if interrupted else str(error)
        errors.print(f"[bold red]Error:[/] {escape(text)}", soft_wrap=True, highlight=False)
        raise typer.Exit(USER_ERROR if mistake else RUN_FAILED) from error


def _show_version(asked: bool) -> None:
    if asked:
        console.print(f"rankwise {installed_version('rankwise')}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""


@app.command(epilog="Example: [bold]rankwise demo --out demo-run[/]")
def demo(
    out: Annotated[Path, typer.Option(help="Where the two runs and the pictures go.")] = Path("demo-run"),
    seed: Seed = 0,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Search against uniform LoRA on a small model that comes with its package: no network, no GPU, minutes."""
    with _explained(debug):
        from rankwise.runs.demo import run_demo

        run_demo(out, seed=seed, overwrite=overwrite, console=console)


@app.command(
    epilog="Examples:\n\n"
    "[bold]rankwise train recipes/minilm/mrpc-grad-norm-dynamic.yaml --set data.data_dir=data[/]\n\n"
    "[bold]rankwise train my.yaml --out runs/mine --set training.epochs=1 --set seed=13[/]\n\n"
    "[bold]rankwise train my.yaml --out runs/mine --resume[/]"
)
def train(
    recipe: RecipeFile,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; by default runs/<recipe>-seed<seed>.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")] = False,
    overwrite: Overwrite = False,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Two steps on a tiny random stand-in of the model; nothing is kept.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Train what a recipe says and report the last and the dev-selected epoch."""
    with _explained(debug):
        from rankwise.runs.recipes.recipe import load_recipe

        checked = load_recipe(recipe, overrides or [])
        if dry:
            from rankwise.runs.dryrun import STEPS, dry_run

            dry_run(checked)
            console.print(f"[green]{escape(str(recipe))}: {STEPS} steps on a tiny stand-in went through[/]")
            return
        from rankwise.runs.results.tables import result_table
        from rankwise.runs.training.train import train as run

        command = shlex.join(["rankwise", *sys.argv[1:]])
        folder = out or Path("runs") / f"{recipe.stem}-seed{checked.seed}"
        result = run(checked, folder, resume=resume, overwrite=overwrite, console=console, command=command)
        console.quiet = not result.main_process
        if not result.trained:
            console.print(f"{folder} is finished already; nothing to resume")
        console.print(result_table(result.metrics))
        console.print(f"adapter, metrics and checkpoints: [bold]{escape(str(folder))}[/]")


@app.command(
    epilog="Example: [bold]rankwise score recipes/minilm/mrpc-grad-norm-static.yaml --set data.data_dir=data[/]"
)
def score(
    recipe: RecipeFile,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the choice as an untrained plain LoRA adapter to this folder.", show_default=False),
    ] = None,
    debug: Debug = False,
) -> None:
    """Search once, before training: every path's score, its cost, and which ones fit the budget."""
    with _explained(debug):
        from rankwise.runs.recipes.recipe import load_recipe

        checked = load_recipe(recipe, overrides or [])
        from rankwise.runs.results.tables import score_table
        from rankwise.runs.score import score as search

        console.print(score_table(search(checked, out=out)))
        if out is not None:
            console.print(f"untrained plain LoRA adapter: [bold]{escape(str(out))}[/]")


@app.command(epilog="Example: [bold]rankwise plan recipes/opt-350m/mrpc-heterolora-dynamic.yaml[/]")
def plan(recipe: RecipeFile, overrides: Overrides = None, debug: Debug = False) -> None:
    """Count parameters and memory before spending anything; loads no weights."""
    with _explained(debug):
        from rankwise.runs.recipes.recipe import load_recipe

        checked = load_recipe(recipe, overrides or [])
        from rankwise.runs.results.tables import plan_table
        from rankwise.runs.sizes import plan_recipe

        console.print(plan_table(plan_recipe(checked)))


@app.command(
    epilog="Examples:\n\n"
    "[bold]rankwise ranks recipes/minilm/mrpc-uniform.yaml --set data.data_dir=data --budget 9216[/]\n\n"
    "[bold]rankwise ranks my.yaml --budget 100000 --out planned[/]   writes an adapter that other tools start from"
)
def ranks(
    recipe: RecipeFile,
    budget: Annotated[int, typer.Option(help="The most parameters of the adapter.", show_default=False)],
    space: Annotated[str, typer.Option(help="linear: plain LoRA; all: with shortcuts and LoR2C.")] = "linear",
    batches: Annotated[int, typer.Option(help="Training batches to plan on.", min=2)] = 24,
    out: Annotated[
        Path | None,
        typer.Option(help="Write an untrained adapter, the plan and snippets for other tools.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Plan how much rank each projection gets under a budget, by what the loss is predicted to fall; trains nothing."""
    with _explained(debug):
        from rankwise.runs.recipes.recipe import load_recipe

        checked = load_recipe(recipe, overrides or [])
        from rankwise.report.terminal import render_ranks
        from rankwise.runs.ranks import plan_ranks

        found = plan_ranks(checked, budget=budget, space=space, batches=batches, out=out)
        console.print(render_ranks(found.plan))
        for name in () if out is not None else ("Python",):
            console.print(found.snippets.get(name, ""), markup=False, highlight=False, soft_wrap=True)
        if out is not None:
            console.print(f"adapter to start from, plan and snippets: [bold]{escape(str(out))}[/]")


@app.command(epilog="Example: [bold]rankwise export runs/mrpc-grad-norm-dynamic-seed0 plain-lora[/]")
def export(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Where the plain LoRA adapter goes.", show_default=False)],
    rank_pattern: Annotated[
        bool, typer.Option("--rank-pattern", help="Keep each module's own rank (PEFT only, vLLM mis-scales it).")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write a run's adapter as plain LoRA, which loads without rankwise."""
    with _explained(debug):
        from rankwise.runs.results.exporting import export_run

        console.print(f"plain LoRA adapter: [bold]{escape(str(export_run(run, out, rank_pattern=rank_pattern)))}[/]")


@app.command(
    epilog="Examples:\n\n"
    "[bold]rankwise evaluate runs/alpaca-lor2c-seed0 --suite paper --allow-code-execution[/]\n\n"
    "[bold]rankwise evaluate runs/alpaca-lor2c-seed0 --task drop --shots 3 --limit 50 --out drop.json[/]\n\n"
    "[bold]rankwise evaluate runs/alpaca-lor2c-seed0 --task-file mine.yaml --base[/]"
)
def evaluate(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run of a causal LM.", show_default=False)],
    suite: Annotated[
        str | None, typer.Option(metavar="paper", help="MMLU 5-shot, BBH and DROP 3-shot, HumanEval 0-shot.")
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--task", metavar="NAME", help="A task of the harness; may be given again.")
    ] = None,
    task_files: Annotated[
        list[Path] | None,
        typer.Option("--task-file", metavar="YAML", help="A task of your own, its data beside it; may be given again."),
    ] = None,
    shots: Annotated[
        list[int] | None,
        typer.Option("--shots", metavar="N", help="Worked examples: one number for all tasks, or one each, in order."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many examples of each task.", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Examples in a forward pass.", min=1)] = 8,
    base: Annotated[bool, typer.Option("--base", help="The pretrained model, without the adapter.")] = False,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="Run Python code that the model writes (HumanEval).")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The file; by default evaluation.json in the run folder.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    debug: Debug = False,
) -> None:
    """Evaluate a run on tasks of lm-evaluation-harness (the extra `eval`)."""
    with _explained(debug):
        from rankwise.evaluation.evaluate import evaluate_run, evaluation_table, read_tasks

        asked = read_tasks(suite=suite, tasks=tasks or (), files=task_files or (), shots=shots or ())
        figures, file = evaluate_run(
            run,
            asked,
            limit=limit,
            batch_size=batch_size,
            base=base,
            allow_code_execution=allow_code_execution,
            out=out,
            overwrite=overwrite,
            console=console,
            command=shlex.join(["rankwise", *sys.argv[1:]]),
        )
        console.print(evaluation_table(figures))
        console.print(f"figures: [bold]{escape(str(file))}[/]", soft_wrap=True, highlight=False)


@app.command(
    epilog="Examples:\n\n"
    "[bold]rankwise report demo-run/heterolora[/]\n\n"
    "[bold]rankwise report runs/mrpc-combined-seed0 runs/mrpc-separated-seed0 --out pictures --format svg[/]"
)
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run folders, adapter folders or history files.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="The folder for the pictures.")] = Path("report"),
    picture_format: Annotated[str, typer.Option("--format", metavar="png|svg", help="Of the pictures.")] = "png",
    debug: Debug = False,
) -> None:
    """Draw what searches and edits did: which paths were on, scores over time, structures, singular values."""
    with _explained(debug):
        from rankwise.runs.results.pictures import write_report

        drawn = write_report(runs, out, picture_format=picture_format)
        for reason in drawn.left_out:
            console.print(f"[yellow]{escape(reason)}[/]", soft_wrap=True, highlight=False)
        for picture in drawn.written:
            console.print(f"{picture.stem}: [bold]{escape(str(picture))}[/]", soft_wrap=True, highlight=False)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
