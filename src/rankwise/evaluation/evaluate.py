"""A finished run on the tasks of lm-evaluation-harness."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rankwise.errors import check_choice
from rankwise.evaluation import harness
from rankwise.evaluation.harness import SUITES, Asked, Figures
from rankwise.files import write_json_atomic
from rankwise.runs.building.models import load_tokenizer
from rankwise.runs.folder import RunFolder
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.recipe import Recipe
from rankwise.runs.results.trained import load_trained, trained_spec
from rankwise.runs.training.metrics import PACKAGES


def evaluate_run(
    run: str | Path,
    asked: Sequence[Asked],
    *,
    limit: int | None = None,
    batch_size: int = 8,
    base: bool = False,
    allow_code_execution: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    console: Console | None = None,
    command: str | None = None,
) -> tuple[Figures, Path]:
    """Evaluate a run's model and write the figures into one file.

    Every task and its data is found before the model is loaded, so a mistake costs little.

    Args:
        run: The folder of a finished run.
        asked: The tasks, from ``read_tasks``.
        limit: Only the first so many examples of each task: to try out, not to report.
        batch_size: Examples in a forward pass.
        base: Evaluate the pretrained model, without what the run trained.
        allow_code_execution: Run what the model writes where a task asks for it (HumanEval).
        out: The file; by default ``evaluation.json`` in the run folder, with ``base`` ``evaluation-base.json``.
        overwrite: Replace the file.
        console: Where to say which task is running; none says nothing.
        command: The command line, for the file.

    Returns:
        What the file holds, and the file.

    Raises:
        FileNotFoundError: There is no run.
        ModuleNotFoundError: The harness is not installed.
        ValueError: The run is not finished or no causal language model, the file exists, or a task does not fit.
    """
    folder = RunFolder(Path(run))
    recipe, trained = folder.recipe(), folder.figures()
    if trained["task_type"] != "CAUSAL_LM":
        raise ValueError(
            f"{run} trained a classifier (task {trained['task']!r}), its figures are in {folder.metrics}: evaluate "
            "needs a causal language model, as data.task 'text', 'instruction' and 'chat' train one"
        )
    if PartialState().num_processes > 1:
        raise ValueError("evaluate runs in one process: start it without accelerate launch or torchrun")
    file = Path(out) if out is not None else (folder.base_evaluation if base else folder.evaluation)
    if file.exists() and not overwrite:
        raise ValueError(f"{file} exists already: say --overwrite to replace it, or give another --out")
    versions = {name: version(name) for name in PACKAGES} | {"lm_eval": harness.harness_version()}
    began = time.perf_counter()
    with quiet(), harness.harness_quiet(), harness.code_execution(allow_code_execution):
        tasks = harness.prepare(asked, allow_code_execution=allow_code_execution)
        lm = _language_model(folder, recipe, base=base, batch_size=batch_size)
        results = {}
        for task in tasks:
            if console is not None:
                console.print(f"{task.name}: {len(task.leaves)} task{'s' * (len(task.leaves) != 1)}", highlight=False)
            results[task.name] = harness.run_task(lm, task, limit=limit, allow_code_execution=allow_code_execution)
    figures = {
        **{key: trained[key] for key in ("model", "method", "task", "seed")},
        "evaluated": "base" if base else "adapter",
        "checkpoint": recipe.select,
        "command": command,
        "limit": limit,
        "batch_size": batch_size,
        "max_length": lm.max_length,
        "seconds": time.perf_counter() - began,
        "versions": {"python": platform.python_version(), **versions},
        "results": results,
    }
    write_json_atomic(file, figures)
    return figures, file


def read_tasks(
    *,
    suite: str | None = None,
    tasks: Sequence[str] = (),
    files: Sequence[Path] = (),
    shots: Sequence[int] = (),
) -> list[Asked]:
    """Pair tasks with their shots.

    Args:
        suite: A name in ``SUITES``, which brings its own shots.
        tasks: Names of the harness.
        files: YAML files.
        shots: None, one for all of ``tasks`` and ``files``, or one for each of them in this order.

    Raises:
        ValueError: Nothing is asked for, the suite is unknown, or the numbers don't match.
    """
    if suite is not None:
        check_choice("suite", suite, SUITES)
    given: list[str | Path] = [*tasks, *files]
    if suite is None and not given:
        raise ValueError(f"nothing to evaluate on: give --task, --task-file or --suite ({', '.join(SUITES)})")
    if any(number < 0 for number in shots):
        raise ValueError(f"shots={min(shots)}: 0 is the least")
    if len(shots) not in (0, 1, len(given)) or (shots and not given):
        raise ValueError(
            f"{len(shots)} --shots for {len(given)} --task and --task-file: give none, one for all of them, or one "
            "each, in their order (a suite has its own)"
        )
    each = list(shots) if len(shots) == len(given) else [*shots, None][:1] * len(given)
    named = [Asked(task, number) for task, number in zip(given, each, strict=True)]
    return [*(Asked(name, number) for name, number in (SUITES[suite] if suite else {}).items()), *named]


def _language_model(folder: RunFolder, recipe: Recipe, *, base: bool, batch_size: int) -> Any:
    """Load what the run trained, in the precision it was trained in."""
    return harness.language_model(
        load_trained(folder, base=base),
        load_tokenizer(trained_spec(folder)),
        batch_size=batch_size,
        mixed_precision="bfloat16" if recipe.training.bf16 else None,
    )


def evaluation_table(figures: Figures) -> Table:
    """Return the figures, one metric a row; the tasks of a group are in the file."""
    evaluated = "the pretrained model" if figures["evaluated"] == "base" else figures["method"]
    title = escape(f"{figures['model']}, {evaluated}, seed {figures['seed']}")
    table = Table(title=title, title_justify="left")
    for column in ("task", "shots", "metric"):
        table.add_column(column)
    for column in ("value", "standard error", "examples"):
        table.add_column(column, justify="right")
    for name, found in figures["results"].items():
        for part, metrics in _rows(name, found):
            for metric, value in metrics.items():
                error = metrics.get(_error_of(metric))
                if "_stderr" not in metric:
                    shots = "" if found["shots"] is None else str(found["shots"])
                    cells = ("-" if number is None else f"{number:.4f}" for number in (value, error))
                    table.add_row(
                        escape(part), shots, escape(metric), *cells, f"{found['examples']:,}" if part == name else ""
                    )
    if figures["limit"] is not None:
        table.caption = f"only the first {figures['limit']} examples of each task: figures to try out, not to report"
    return table


def _rows(name: str, found: Figures) -> list[tuple[str, Figures]]:
    """Return a task's own metrics, or those of its parts where it has none together."""
    return [(name, found["metrics"])] if found["metrics"] else list(found["tasks"].items())


def _error_of(metric: str) -> str:
    name, comma, how = metric.partition(",")
    return f"{name}_stderr{comma}{how}"
