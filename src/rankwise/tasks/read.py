"""From files or the hub to tables in memory, with errors that name the file and the row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from datasets import Dataset

from rankwise.errors import nearest
from rankwise.tasks.registry import Task
from rankwise.tasks.spec import DataSpec

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")


class Source(NamedTuple):
    """A split as it was found, and the words an error names it by."""

    rows: Dataset
    where: str


def read_splits(spec: DataSpec, task: Task | None) -> dict[str, Source]:
    """Return the splits there are, ``train`` always among them.

    Files are read into memory; a dataset of the hub needs a network (or its cache, where ``datasets`` keeps it).

    Raises:
        ValueError: A file, folder or split is missing, empty or unreadable.
    """
    if spec.train_file:
        named = {"train": spec.train_file, "validation": spec.validation_file, "test": spec.test_file}
        return {split: read_file(file) for split, file in named.items() if file}
    assert task is not None
    if spec.data_dir:
        return _read_folder(spec.data_dir, task)
    return _read_hub(task)


def read_file(path: str | Path) -> Source:
    """Read one file into a table in memory, whatever its suffix among ``SUFFIXES``; ``.txt`` is one row ``text``.

    Raises:
        ValueError: The file isn't there, has another suffix, can't be parsed or has no rows.
    """
    file = Path(path)
    if not file.is_file():
        siblings = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
        raise ValueError(f"no file {file}{nearest(file.name, siblings)}")
    if file.suffix not in SUFFIXES:
        raise ValueError(f"{file}: suffix {file.suffix!r} is not one of {', '.join(SUFFIXES)}")
    try:
        rows = Dataset(_parse(file))
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {error}") from error
    return _not_empty(Source(rows, str(file)))


def check_texts(source: Source, columns: Sequence[str]) -> None:
    """Raise unless every one of the columns exists and holds text in every row.

    Raises:
        ValueError: A column is missing (with the columns there are), or a value is no text.
    """
    for column in columns:
        check_column(source, column)
        values = source.rows.data.column(column)
        if values.null_count:
            row = pc.index(pc.is_null(values), True).as_py()
            raise ValueError(f"{source.where}, row {row + 1}: column {column!r} has no text")
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            raise ValueError(f"{source.where}: column {column!r} holds {values.type}, not text")


def check_column(source: Source, column: str) -> None:
    """Raise unless the column exists."""
    names = source.rows.column_names
    if column not in names:
        raise ValueError(
            f"{source.where} has no column {column!r}{nearest(column, names)}; its columns are {', '.join(names)}"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Turn the progress bars of ``datasets`` off inside, and leave them as they were."""
    were_off = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            datasets.enable_progress_bars()


def _read_folder(data_dir: Path, task: Task) -> dict[str, Source]:
    folder = data_dir / task.name
    if not folder.is_dir():
        there = sorted(entry.name for entry in data_dir.iterdir() if entry.is_dir()) if data_dir.is_dir() else []
        raise ValueError(
            f"no folder {folder}{nearest(task.name, there)}; data_dir={str(data_dir)!r} "
            f"{'holds ' + ', '.join(there) if there else 'has no folders' if data_dir.is_dir() else 'is not there'}"
        )
    splits: dict[str, Source] = {}
    for split in ("train", "validation", "test", *task.extra):
        names = dict.fromkeys((split, task.splits.get(split, split)))
        files = [folder / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
        found = next((file for file in files if file.is_file()), None)
        if found:
            splits[split] = read_file(found)
    if "train" not in splits:
        raise ValueError(f"{folder} has no train.jsonl (nor another of {', '.join(SUFFIXES)})")
    return splits


def _read_hub(task: Task) -> dict[str, Source]:
    assert task.hub is not None
    path, configuration = task.hub
    with quiet():
        loaded = datasets.load_dataset(path, configuration)
    splits: dict[str, Source] = {}
    for split in ("train", "validation", "test", *task.extra):
        name = task.splits.get(split, split)
        if name in loaded:
            splits[split] = _not_empty(Source(loaded[name], f"{path} {configuration}, split {name}"))
    return splits


def _parse(file: Path) -> pa.Table:
    if file.suffix == ".parquet":
        return pa.parquet.read_table(file)
    if file.suffix in (".csv", ".tsv"):
        options = pa.csv.ParseOptions(delimiter="," if file.suffix == ".csv" else "\t", newlines_in_values=True)
        empty_alone_is_null = pa.csv.ConvertOptions(null_values=[""])  # a text may read "null" or "NA"
        return pa.csv.read_csv(file, parse_options=options, convert_options=empty_alone_is_null)
    if file.suffix == ".txt":
        text = file.read_text(encoding="utf-8")
        return pa.table({"text": [text] if text.strip() else pa.array([], pa.string())})
    if file.suffix == ".json":
        return _table(_parse_json(file), file)
    return _table(list(_parse_lines(file)), file)


def _parse_json(file: Path) -> list[Any]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}, line {error.lineno}: not JSON ({error.msg})") from error
    if not isinstance(rows, list):
        raise ValueError(f"{file} holds a JSON {type(rows).__name__}, not a list of objects: for JSON lines use .jsonl")
    return rows


def _parse_lines(file: Path) -> Iterator[Any]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{file}, line {number}: not JSON ({error.msg}): {line.strip()[:60]!r}") from error


def _table(rows: list[Any], file: Path) -> pa.Table:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{file}, row {number} holds {row!r:.60}, not an object with columns")
    columns = dict.fromkeys(column for row in rows for column in row)
    return pa.table({column: _array([row.get(column) for row in rows], column) for column in columns})


def _array(values: list[Any], column: str) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise pa.ArrowInvalid(f"column {column!r} mixes types: {error}") from error


def _not_empty(source: Source) -> Source:
    if not len(source.rows):
        raise ValueError(f"{source.where} is empty: it has no rows")
    return source
