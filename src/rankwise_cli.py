"""The command line. Heavy imports wait inside the commands, so that ``--help`` is quick.

A module beside the package: importing anything of ``rankwise`` registers its methods, and so imports PEFT and torch.
"""

from __future__ import annotations

import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from rankwise_cli_report import results
from rankwise_cli_study import TUNE_EXAMPLES, study_commands, tune
from rankwise_exits import explained, show_version, show_warning
from rankwise_options import Debug, Overrides, Overwrite, RecipeFile, Seed, console

app = typer.Typer(
    name="rankwise",
    help="Fine-tune a transformer on a fixed budget of low-rank parameters and let the budget go where it pays.",
    epilog="Exit codes: 0 done; 1 the run failed; 2 something asked for or given is wrong; 130 and 143 it was stopped "
    "by Ctrl-C and by SIGTERM.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""


@app.command(epilog="Example: [bold]rankwise demo --out demo-run[/]")
def demo(
    out: Annotated[Path, typer.Option(help="The folder of the race.")] = Path("demo-run"),
    seed: Seed = 0,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Race four configurations on a small model that comes with its package: no network, no GPU, minutes."""
    with explained(debug):
        from rankwise.study.demo import run_demo

        run_demo(out, seed=seed, overwrite=overwrite, console=console)


@app.command(
    epilog="Examples:\n\n"
    "[bold]rankwise init[/]\n\n"
    "[bold]rankwise init mine.yaml --task classification --data reviews.csv --text review --label stars "
    "--model FacebookAI/roberta-base --method heterolora[/]"
)
def init(
    out: Annotated[Path, typer.Argument(help="The recipe to write.")] = Path("recipe.yaml"),
    task: Annotated[
        str | None,
        typer.Option(help="classification, regression, chat, instruction, text, or a benchmark.", show_default=False),
    ] = None,
    data: Annotated[str | None, typer.Option(help="A file, or a dataset's id on the hub.", show_default=False)] = None,
    text: Annotated[str | None, typer.Option(help="The text's column, or two: a,b.", show_default=False)] = None,
    label: Annotated[str | None, typer.Option(help="The label's column.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="A hub id or a folder.", show_default=False)] = None,
    method: Annotated[str | None, typer.Option(help="heterolora, lora or lor2c.", show_default=False)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    debug: Debug = False,
) -> None:
    """Write a recipe: asks for what no option says."""
    with explained(debug):
        from rankwise.runs.recipes.starting import Answers, compose, write_first

        def ask(question: str, default: str | None) -> str:
            return str(typer.prompt(question, default=default))

        answers = Answers(task, data, text, label, model, method)
        made = write_first(compose(answers, ask if sys.stdin.isatty() else None), out, overwrite=overwrite)
        console.print(made.read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
        console.print(f"written to [bold]{escape(str(made))}[/]; its first lines say what to run next")


@app.command(epilog="Example: [bold]rankwise recipes modernbert[/]")
def recipes(
    part: Annotated[str, typer.Argument(help="Only names that contain this.", show_default=False)] = "",
    debug: Debug = False,
) -> None:
    """List the recipes that ship; the commands take their names."""
    with explained(debug):
        from rankwise.runs.recipes.shipped import first_line, shipped_recipes

        found = {name: file for name, file in shipped_recipes().items() if part in name}
        if not found:
            raise ValueError(f"no recipe's name contains {part!r}: rankwise recipes lists them all")
        for name, file in found.items():
            console.print(f"[bold]{escape(name)}[/]  {escape(first_line(file))}", soft_wrap=True, highlight=False)


@app.command(
    epilog="Examples:\n\n"
    "[bold]rankwise train minilm/mrpc-uniform --set data.data_dir=data[/]\n\n"
    "[bold]rankwise train my.yaml --out runs/mine --set training.epochs=1 --set seed=13[/]\n\n"
    "[bold]rankwise train my.yaml --out runs/mine --resume[/]\n\n"
    "Longer, also when it is finished: [bold]rankwise train runs/mine/config.yaml --out runs/mine --resume "
    "--set training.epochs=6[/]"
)
def train(
    recipe: RecipeFile,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; by default runs/<recipe>-seed<seed>.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the run in the folder; with a greater training.epochs also a finished one."
        ),
    ] = False,
    overwrite: Overwrite = False,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Two steps on a tiny random stand-in of the model; nothing is kept.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Train what a recipe says and report the last and the dev-selected epoch."""
    with explained(debug):
        from rankwise.runs.recipes.recipe import load_recipe

        checked = load_recipe(recipe, overrides or [])
        if dry:
            from rankwise.runs.dryrun import STEPS, dry_run

            dry_run(checked)
            console.print(f"[green]{escape(recipe)}: {STEPS} steps on a tiny stand-in went through[/]")
            return
        from rankwise.runs.results.tables import result_table
        from rankwise.runs.training.train import train as run

        command = shlex.join(["rankwise", *sys.argv[1:]])
        folder = out or Path("runs") / f"{Path(recipe).stem}-seed{checked.seed}"
        result = run(checked, folder, resume=resume, overwrite=overwrite, console=console, command=command)
        console.quiet = not result.main_process
        if not result.trained:
            console.print(
                f"{escape(str(folder))} is finished already; nothing to resume (to train longer, raise "
                "training.epochs or training.max_steps with --set)"
            )
        console.print(result_table(result.metrics))
        console.print(f"adapter, metrics and checkpoints: [bold]{escape(str(folder))}[/]")


@app.command(epilog="Example: [bold]rankwise score minilm/mrpc-grad-norm-static --set data.data_dir=data[/]")
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
    with explained(debug):
        from rankwise.runs.recipes.recipe import load_recipe

        checked = load_recipe(recipe, overrides or [])
        from rankwise.runs.progress import passes_shown
        from rankwise.runs.results.tables import score_table
        from rankwise.runs.score import score as search

        with passes_shown(console):
            found = search(checked, out=out)
        console.print(score_table(found))
        if out is not None:
            console.print(f"untrained plain LoRA adapter: [bold]{escape(str(out))}[/]")


@app.command(
    epilog="Examples:\n\n"
    "[bold]rankwise plan roberta-base/mrpc-lora[/]\n\n"
    "[bold]rankwise plan qwen3-4b/chat-qlora --room 24 --set training.batch_size=2[/]"
)
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    room: Annotated[
        float | None,
        typer.Option(
            metavar="GIB", help="Memory to fit into; by default the accelerator's.", show_default=False, min=0
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Count parameters and memory before spending anything, and say whether it fits; loads no weights."""
    with explained(debug):
        from rankwise.runs.recipes.recipe import load_recipe

        checked = load_recipe(recipe, overrides or [])
        from rankwise.runs.memory import plan_memory, verdict
        from rankwise.runs.results.tables import memory_table, plan_table
        from rankwise.runs.sizes import plan_recipe

        console.print(plan_table(plan_recipe(checked)))
        memory = plan_memory(checked)
        console.print(memory_table(memory))
        console.print(verdict(memory, None if room is None else room * 2**30), highlight=False)


@app.command(
    epilog="Examples:\n\n"
    "[bold]rankwise ranks minilm/mrpc-uniform --set data.data_dir=data --budget 9216[/]\n\n"
    "[bold]rankwise ranks my.yaml --budget 100000 --time-limit 0.6[/]   steps of 60 % of uniform LoRA's time\n\n"
    "[bold]rankwise ranks my.yaml --budget 100000 --out planned[/]   writes an adapter that other tools start from"
)
def ranks(
    recipe: RecipeFile,
    budget: Annotated[int, typer.Option(help="The most parameters of the adapter.", show_default=False)],
    space: Annotated[str, typer.Option(help="linear: plain LoRA; all: with shortcuts and LoR2C.")] = "linear",
    batches: Annotated[int, typer.Option(help="Training batches to plan on.", min=2)] = 24,
    time_limit: Annotated[
        float | None,
        typer.Option(help="The most that a step may take, in steps of uniform LoRA: 0.6.", show_default=False),
    ] = None,
    prefix_cache: Annotated[
        bool, typer.Option("--prefix-cache", help="The frozen prefix will be kept in training: it takes no time.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Write an untrained adapter, the plan and snippets for other tools.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Plan how much rank each projection gets under a budget, by what the loss is predicted to fall; trains nothing."""
    with explained(debug):
        from rankwise.runs.recipes.recipe import load_recipe

        checked = load_recipe(recipe, overrides or [])
        from rankwise.errors import called
        from rankwise.report.terminal import render_ranks
        from rankwise.runs.progress import passes_shown
        from rankwise.runs.ranks import plan_ranks

        with passes_shown(console), called("rankwise.rank_plan"):
            found = plan_ranks(
                checked,
                budget=budget,
                space=space,
                batches=batches,
                out=out,
                time_limit=time_limit,
                prefix_cache=prefix_cache,
            )
        console.print(render_ranks(found.plan))
        if out is None:
            console.print(f"\n{found.snippets['Python']}", markup=False, highlight=False, soft_wrap=True)
        else:
            console.print(f"adapter to start from, plan and snippets: [bold]{escape(str(out))}[/]")


@app.command(
    epilog="Examples:\n\n"
    "[bold]rankwise export runs/mine plain-lora[/]\n\n"
    "[bold]rankwise export runs/mine model --merged[/]"
)
def export(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Where the plain LoRA adapter, or the model, goes.", show_default=False)],
    rank_pattern: Annotated[
        bool, typer.Option("--rank-pattern", help="Keep each module's own rank (PEFT only, vLLM mis-scales it).")
    ] = False,
    merged: Annotated[
        bool, typer.Option("--merged", help="The whole model, the adapter merged into it: transformers alone loads it.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write a run's adapter as plain LoRA, or its model whole: what loads without rankwise."""
    with explained(debug):
        from rankwise.runs.results.exporting import export_merged, export_run

        if merged and rank_pattern:
            raise ValueError("--merged leaves no ranks to keep: say it or --rank-pattern")
        made = export_merged(run, out) if merged else export_run(run, out, rank_pattern=rank_pattern)
        console.print(f"{'whole model' if merged else 'plain LoRA adapter'}: [bold]{escape(str(made))}[/]")


@app.command(
    epilog="Examples:\n\n"
    '[bold]rankwise predict runs/sst2-lora-seed0 "a film of quiet charm"[/]\n\n'
    '[bold]rankwise predict runs/mrpc-uniform-seed0 "He left." "He went away."[/]\n\n'
    "[bold]rankwise predict runs/mrpc-uniform-seed0 new.csv --out answers.jsonl[/]"
)
def predict(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE_OR_TEXT...", help="A file like the training data, or the text.", show_default=False
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Write the answers as JSON lines.", show_default=False)] = None,
    batch_size: Annotated[int, typer.Option(help="Rows in a forward pass.", min=1)] = 32,
    max_new_tokens: Annotated[int, typer.Option(help="The longest answer of a causal model.", min=1)] = 128,
    debug: Debug = False,
) -> None:
    """Ask a run about new text: a label with its probability, a score, or an answer."""
    with explained(debug):
        from rankwise.runs.results.predicting import answer_table
        from rankwise.runs.results.predicting import predict as ask

        found = ask(run, inputs, out=out, batch_size=batch_size, max_new_tokens=max_new_tokens)
        if out is None:
            console.print(answer_table(found))
        else:
            console.print(f"{len(found):,} answers: [bold]{escape(str(out))}[/]")


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
    with explained(debug):
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


app.command(epilog=TUNE_EXAMPLES)(tune)
app.add_typer(study_commands)
app.add_typer(results)


def main() -> None:
    """Run the command line."""
    warnings.showwarning = show_warning
    app()


if __name__ == "__main__":
    main()
