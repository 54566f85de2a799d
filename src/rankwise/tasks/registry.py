"""The tasks known by name: where their text is, what their labels mean and how they are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from rankwise.errors import nearest
from rankwise.tasks.docstrings import GROUPS

Kind = Literal["classification", "regression", "choice", "causal"]

INSTRUCTION = "instruction"
CHAT = "chat"
ANSWERS = (INSTRUCTION, CHAT)  # what learns answers to prompts
GLUE = "Wang et al., GLUE, arXiv 1804.07461"
SUPERGLUE = "Wang et al., SuperGLUE, arXiv 1905.00537"


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        name: What a recipe calls it; also the name of its folder in a ``data_dir``.
        kind: ``"classification"``, ``"regression"``, ``"choice"`` (which of two continuations) or ``"causal"``.
        columns: The text columns, in the order the model reads them.
        label: The label column; none for causal language modelling.
        label_names: What the labels 0, 1, ... mean.
        metrics: What is reported; the first one is the headline.
        reference: Where the task comes from.
        hub: Dataset and configuration on the Hugging Face hub.
        label_range: The smallest and largest value of a regression's label.
        splits: The name of a split in the data where it differs from the one used here.
        extra: Splits that are reported beside ``validation``.
        keeps_empty: Whether its rows count although a text is empty: QQP has such questions.
    """

    name: str
    kind: Kind
    columns: tuple[str, ...]
    label: str | None
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    reference: str
    hub: tuple[str, str] | None = None
    label_range: tuple[float, float] | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    extra: tuple[str, ...] = ()
    keeps_empty: bool = False


def _glue(
    name: str, columns: tuple[str, ...], labels: tuple[str, ...], *metrics: str, keeps_empty: bool = False
) -> Task:
    hub = ("nyu-mll/glue", name)
    return Task(name, "classification", columns, "label", labels, metrics, GLUE, hub=hub, keeps_empty=keeps_empty)


def _superglue(name: str, kind: Kind, columns: tuple[str, ...], labels: tuple[str, ...], *metrics: str) -> Task:
    return Task(name, kind, columns, "label", labels, metrics, SUPERGLUE, hub=("aps/super_glue", name))


_TASKS = (
    _glue("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), "accuracy", "f1"),
    _glue("rte", ("sentence1", "sentence2"), ("entailment", "not_entailment"), "accuracy"),
    _glue("sst2", ("sentence",), ("negative", "positive"), "accuracy"),
    _glue("cola", ("sentence",), ("unacceptable", "acceptable"), "matthews"),
    Task(
        name="stsb",
        kind="regression",
        columns=("sentence1", "sentence2"),
        label="label",
        label_names=(),
        metrics=("pearson", "spearman"),
        reference=GLUE,
        hub=("nyu-mll/glue", "stsb"),
        label_range=(0.0, 5.0),
    ),
    _glue("qnli", ("question", "sentence"), ("entailment", "not_entailment"), "accuracy"),
    _glue("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), "accuracy", "f1", keeps_empty=True),
    Task(
        name="mnli",
        kind="classification",
        columns=("premise", "hypothesis"),
        label="label",
        label_names=("entailment", "neutral", "contradiction"),
        metrics=("accuracy",),
        reference=GLUE,
        hub=("nyu-mll/glue", "mnli"),
        splits=MappingProxyType({"validation": "validation_matched", "test": "test_matched"}),
        extra=("validation_mismatched",),
    ),
    _glue("wnli", ("sentence1", "sentence2"), ("not_entailment", "entailment"), "accuracy"),
    _superglue("boolq", "classification", ("question", "passage"), ("False", "True"), "accuracy"),
    _superglue(
        "cb",
        "classification",
        ("premise", "hypothesis"),
        ("entailment", "contradiction", "neutral"),
        "accuracy",
        "f1_macro",
    ),
    _superglue("copa", "choice", ("premise", "question", "choice1", "choice2"), ("choice1", "choice2"), "accuracy"),
    Task(
        name=INSTRUCTION,
        kind="causal",
        columns=("instruction", "input", "output"),
        label=None,
        label_names=(),
        metrics=("loss", "perplexity"),
        reference="Taori et al., Stanford Alpaca, 2023",
    ),
    Task(
        name=CHAT,
        kind="causal",
        columns=("messages",),
        label=None,
        label_names=(),
        metrics=("loss", "perplexity"),
        reference="conversations as TRL has them: messages, or prompt and completion, with tools",
    ),
    Task(
        name="text",
        kind="causal",
        columns=("text",),
        label=None,
        label_names=(),
        metrics=("loss", "perplexity"),
        reference="the user's own text",
    ),
    Task(
        name="docstrings",
        kind="classification",
        columns=("text",),
        label="label",
        label_names=tuple(GROUPS),
        metrics=("accuracy", "f1_macro"),
        reference="the running Python's standard library",
    ),
)
TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _TASKS})


def find_task(name: str) -> Task:
    """Return the task of that name.

    Raises:
        ValueError: No task has this name.
    """
    if name not in TASKS:
        raise ValueError(
            f"task={name!r} is unknown{nearest(name, TASKS)}; tasks are {', '.join(TASKS)} "
            "(for files of your own leave task out and name text_columns and label_column)"
        )
    return TASKS[name]
