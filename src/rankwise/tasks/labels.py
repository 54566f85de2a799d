"""Labels as the model wants them: class numbers or floats, anything else an error that says what is allowed."""

from __future__ import annotations

import math
from typing import Any, Literal

import pyarrow as pa
from datasets import Dataset

from rankwise.tasks.read import Source, check_column
from rankwise.tasks.registry import Task
from rankwise.tasks.spec import DataSpec

LABELS = "labels"


def describe_files(spec: DataSpec, train: Source) -> Task:
    """Return the task that the user's own files make: a class for each label of ``train``, or a regression.

    Raises:
        ValueError: The label column is missing, or holds fewer than two classes.
    """
    assert spec.label_column is not None
    check_column(train, spec.label_column)
    kind = spec.kind or _kind_of(train, spec.label_column)
    names: tuple[str, ...] = ()
    if kind == "classification":
        values = [value for value in train.rows.unique(spec.label_column) if value is not None]
        if len(values) < 2:
            raise ValueError(f"{train.where}: column {spec.label_column!r} has {len(values)} labels, two are the least")
        names = tuple(map(str, sorted(values)))
    return Task(
        name="custom",
        kind=kind,
        columns=spec.text_columns,
        label=spec.label_column,
        label_names=names,
        metrics=("accuracy", "f1_macro") if kind == "classification" else ("pearson", "spearman"),
        reference="the user's own files",
    )


def add_labels(source: Source, task: Task, *, optional: bool = False) -> Dataset:
    """Return the rows with a column ``labels``: class numbers, or floats for a regression.

    A class may be given by its number, its name or, with two classes, as a truth value.

    Args:
        source: The rows.
        task: What the labels mean.
        optional: Leave ``labels`` out where the column is missing, or is -1 or null throughout (a hidden test set).

    Raises:
        ValueError: A label is outside the range.
    """
    if task.label is None:
        return source.rows
    if optional and task.label not in source.rows.column_names:
        return source.rows.select_columns([*task.columns])
    check_column(source, task.label)
    if pa.types.is_nested(source.rows.data.column(task.label).type):
        raise ValueError(f"{source.where}: column {task.label!r} holds lists or objects, not one label per row")
    raw = source.rows[task.label][:]
    if optional and set(raw) <= {-1, None}:
        return source.rows.select_columns([*task.columns])
    labels = _floats(raw, source, task) if task.kind == "regression" else _classes(raw, source, task)
    return source.rows.select_columns([*task.columns]).add_column(LABELS, labels)


def _kind_of(train: Source, column: str) -> Literal["classification", "regression"]:
    return "regression" if pa.types.is_floating(train.rows.data.column(column).type) else "classification"


def _classes(raw: list[Any], source: Source, task: Task) -> list[int]:
    numbers: dict[Any, int] = {name: number for number, name in enumerate(task.label_names)}
    if task.name != "custom":
        numbers |= {number: number for number in range(len(task.label_names))}
    else:
        raw = [value if value is None else str(value) for value in raw]
    for row, value in enumerate(raw, start=1):
        if value not in numbers:
            pairs = ", ".join(f"{number} ({name})" for number, name in enumerate(task.label_names))
            allowed = ", ".join(task.label_names) if task.name == "custom" else pairs
            raise ValueError(f"{source.where}, row {row}: {task.label}={value!r} is outside the labels {allowed}")
    return [numbers[value] for value in raw]


def _floats(raw: list[Any], source: Source, task: Task) -> list[float]:
    low, high = task.label_range or (-math.inf, math.inf)
    for row, value in enumerate(raw, start=1):
        if not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
            allowed = f"a number from {low:g} to {high:g}" if task.label_range else "a finite number"
            raise ValueError(f"{source.where}, row {row}: {task.label}={value!r} is not {allowed}")
    return [float(value) for value in raw]
