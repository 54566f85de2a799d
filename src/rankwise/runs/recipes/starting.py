"""A first recipe from a few answers: what to learn, from which data, with which model and method."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rankwise.errors import check_choice
from rankwise.files import write_text_atomic
from rankwise.runs.recipes.recipe import Recipe, load_recipe, parse_recipe
from rankwise.tasks import TASKS
from rankwise.tasks.parse import SUFFIXES

CLASSES = "classification"
OWN = (CLASSES, "regression")
KINDS = (*OWN, "chat", "instruction", "text")
MODELS = {CLASSES: "answerdotai/ModernBERT-base", "causal": "Qwen/Qwen3-0.6B"}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"r": 8, "lora_alpha": 16},
    "heterolora": {"r": 16, "lora_alpha": 32, "budget": 0.25, "mode": "static", "granularity": "rank"},
    "lor2c": {"r": 16, "lora_alpha": 32},
}
# A causal model gets a lower rate and several micro-batches; a classifier's head has to be learned from nothing.
TRAINING: dict[str, dict[str, Any]] = {
    CLASSES: {"epochs": 3, "batch_size": 32, "learning_rate": 1e-3},
    "causal": {"epochs": 1, "batch_size": 4, "accumulation": 4, "learning_rate": 2e-4},
}
ALL_LINEAR = "all-linear"
QUESTIONS = {
    "task": f"What is to be learned ({', '.join(KINDS)}, or a benchmark's name)?",
    "data": f"Training data: a file ({', '.join(SUFFIXES)}) or the id of a dataset on the hub?",
    "text": "Which columns hold the text (one, or two with a comma)?",
    "label": "Which column holds the label?",
    "model": "Which model (a hub id, or a folder)?",
    "method": f"Which method ({', '.join(METHODS)})?",
}
Ask = Callable[[str, str | None], str]


@dataclass(frozen=True)
class Answers:
    """What was said beforehand; the rest is asked.

    Args:
        task: One of ``KINDS``, or a benchmark's name.
        data: A file, or the id of a dataset.
        text: The columns with text, separated by a comma.
        label: The column with the label.
        model: A hub id or a folder.
        method: One of ``METHODS``.
    """

    task: str | None = None
    data: str | None = None
    text: str | None = None
    label: str | None = None
    model: str | None = None
    method: str | None = None


def compose(answers: Answers, ask: Ask | None) -> Recipe:
    """Return the recipe that the answers make.

    Args:
        answers: What was said beforehand.
        ask: Called with a question and its default for what was not; none raises instead.

    Raises:
        ValueError: An answer is missing and nobody can be asked, or one is not allowed.
    """

    def answer(name: str, default: str | None = None) -> str:
        given: str | None = getattr(answers, name)
        if given is not None:
            return given
        if ask is None:
            raise ValueError(f"--{name} is missing and nobody can be asked here: {QUESTIONS[name]}")
        return ask(QUESTIONS[name], default)

    task = answer("task", CLASSES)
    check_choice("task", task, [*KINDS, *(name for name in TASKS if name not in KINDS)])
    data = _data(task, answer)
    family = "causal" if task in TASKS and TASKS[task].kind == "causal" else CLASSES
    model = answer("model", MODELS[family])
    method = answer("method", "lora")
    check_choice("method", method, METHODS)
    targets = {} if method == "lor2c" else {"target_modules": ALL_LINEAR}
    return parse_recipe(
        {
            "model": {"name": model, **({"dtype": "bfloat16"} if family == "causal" else {})},
            "data": data,
            "method": {"name": method, **METHODS[method], **targets},
            "training": TRAINING[family],
        }
    )


def _data(task: str, answer: Callable[..., str]) -> dict[str, Any]:
    named: dict[str, Any] = {} if task in OWN else {"task": task}
    if task == "docstrings" or (task in TASKS and TASKS[task].hub):
        return named
    given = answer("data")
    place = Path(given)  # a folder is loaded as a dataset of the hub is
    is_file = place.is_file() or (place.suffix.lower() in (*SUFFIXES, ".gz") and not place.is_dir())
    named |= {"train_file" if is_file else "dataset": given}
    if task in OWN:
        columns = [column.strip() for column in answer("text", "text").split(",") if column.strip()]
        named |= {"text_columns": columns, "label_column": answer("label", "label"), "kind": task}
    return named


def write_first(recipe: Recipe, out: Path, *, overwrite: bool = False) -> Path:
    """Write a recipe with what was chosen, the rest being defaults, and how to run it in its header.

    Raises:
        ValueError: There is a file already.
    """
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists already: give another name, or say --overwrite")
    said = recipe.model_dump(mode="json", exclude_unset=True)
    body = yaml.safe_dump(said, sort_keys=False, allow_unicode=True)
    name = shlex.quote(str(out))
    command = f"rankwise train {name}"
    header = f"# Try:      {command} --dry-run\n# Sizes:    rankwise plan {name}\n# Command:  {command}\n"
    write_text_atomic(out, header + body)
    load_recipe(out)
    return out
