"""Labels as the model wants them: class numbers or floats, anything else an error that says what is allowed."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Literal

import pyarrow as pa
from datasets import Dataset

from rankwise.tasks.read import Source, check_column
from rankwise.tasks.registry import Task
from rankwise.tasks.spec import DataSpec

LABELS = "labels"
HIDDEN = ("", "-1")  # how a CSV of text labels says that there is none


def describe_files(spec: DataSpec, train: Source) -> Task:
    """Return the task that the user's own files make: a class for each label of ``train``, or a regression.

    Raises:
        ValueError: The label column is missing, holds fewer than two classes, or two that look like one.
    """
    assert spec.label_column is not None
    check_column(train, spec.label_column)
    check_single(train, spec.label_column)
    kind = spec.kind or ("classification" if spec.labels else _kind_of(train, spec.label_column))
    names: tuple[str, ...] = ()
    if kind == "classification":
        names = spec.labels or _found_classes(train, spec.label_column)
    return Task(
        name="custom",
        kind=kind,
        columns=spec.text_columns,
        label=spec.label_column,
        label_names=names,
        metrics=("accuracy", "f1_macro") if kind == "classification" else ("pearson", "spearman"),
        reference="the user's own files",
    )


def class_name(value: Any) -> str:
    """Return the name of a class by its label: ``1.0`` and ``1`` are the same."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _found_classes(train: Source, column: str) -> tuple[str, ...]:
    values = [value for value in train.rows[column] if value is not None and value == value]
    counts = Counter(map(class_name, values))
    if len(counts) < 2:
        raise ValueError(f"{train.where}: column {column!r} has {len(counts)} labels, two are the least")
    _check_alike(train, column, counts)
    numbers = all(isinstance(value, int | float) for value in values)
    return tuple(sorted(counts, key=float if numbers and not isinstance(values[0], bool) else None))


def _check_alike(train: Source, column: str, counts: Counter[str]) -> None:
    """Ask about labels that differ in case or white space only: the rarer one looks like a slip."""
    groups: dict[str, list[str]] = {}
    for name, _ in counts.most_common():
        groups.setdefault(" ".join(name.casefold().split()), []).append(name)
    for meant, *others in groups.values():
        for name in others:
            row = next(index for index, value in enumerate(train.rows[column]) if class_name(value) == name)
            raise ValueError(
                f"{train.where}, row {train.number(row)}: {column}={name!r} ({counts[name]:,} rows) looks like "
                f"{meant!r} ({counts[meant]:,} rows): make them one in the file, or, if they are two classes, name all "
                f"classes in data.labels: [{', '.join(sorted(counts))}]"
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
    if optional and is_hidden(source, task.label):
        return source.rows.select_columns([*task.columns])
    check_column(source, task.label)
    check_single(source, task.label)
    raw = source.rows[task.label][:]
    labels = _floats(raw, source, task) if task.kind == "regression" else _classes(raw, source, task)
    return source.rows.select_columns([*task.columns]).add_column(LABELS, labels)


def check_single(source: Source, column: str) -> None:
    """Refuse a column whose values are no single ones."""
    kind = source.rows.data.column(column).type
    if pa.types.is_nested(kind) or isinstance(kind, pa.JsonType):
        raise ValueError(f"{source.where}: column {column!r} holds lists or objects, not one label per row")


def is_hidden(source: Source, column: str) -> bool:
    """Tell whether a test set's labels are hidden: there is no column, or none in any row."""
    if column not in source.rows.column_names:
        return True
    check_single(source, column)
    return set(source.rows.unique(column)) <= {-1, None, *HIDDEN}


def _kind_of(train: Source, column: str) -> Literal["classification", "regression"]:
    """Take numbers for a regression unless all are whole: tables write whole numbers as floats where one is missing."""
    if not pa.types.is_floating(train.rows.data.column(column).type):
        return "classification"
    values = [value for value in train.rows.unique(column) if value is not None and value == value]
    return "classification" if all(value.is_integer() for value in values) else "regression"


def _classes(raw: list[Any], source: Source, task: Task) -> list[int]:
    numbers: dict[Any, int] = {name: number for number, name in enumerate(task.label_names)}
    if task.name != "custom":
        numbers |= {number: number for number in range(len(task.label_names))}
    else:
        raw = [value if value is None else class_name(value) for value in raw]
    for row, value in enumerate(raw):
        if value not in numbers:
            pairs = ", ".join(f"{number} ({name})" for number, name in enumerate(task.label_names))
            allowed = ", ".join(task.label_names) if task.name == "custom" else pairs
            raise ValueError(
                f"{source.where}, row {source.number(row)}: {task.label}={value!r} is outside the labels {allowed}"
            )
    return [numbers[value] for value in raw]


def _floats(raw: list[Any], source: Source, task: Task) -> list[float]:
    low, high = task.label_range or (-math.inf, math.inf)
    for row, value in enumerate(raw):
        if not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
            allowed = f"a number from {low:g} to {high:g}" if task.label_range else "a finite number"
            raise ValueError(f"{source.where}, row {source.number(row)}: {task.label}={value!r} is not {allowed}")
    return [float(value) for value in raw]
