"""From files or the hub to tables in memory, with errors that name the file and the row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import datasets
import pyarrow as pa
from datasets import ClassLabel, Dataset

from rankwise.errors import nearest
from rankwise.tasks.parse import DELIMITED, GZIP, SUFFIXES, ending, parse_file
from rankwise.tasks.registry import Task
from rankwise.tasks.spec import DataSpec
from rankwise.tasks.written import read_labels, reading_of


class Source(NamedTuple):
    """A split as it was found, the words an error names it by, and the rows' numbers there where some were left out."""

    rows: Dataset
    where: str
    numbers: Sequence[int] | None = None

    def number(self, row: int) -> int:
        """Return the number, from 1, that the file has for a row."""
        return row + 1 if self.numbers is None else self.numbers[row]


def read_splits(spec: DataSpec, task: Task | None) -> dict[str, Source]:
    """Return the splits there are, ``train`` always among them.

    Files are read into memory; a dataset of the hub needs a network (or its cache, where ``datasets`` keeps it).

    Raises:
        ValueError: A file, folder or split is missing, empty or unreadable.
    """
    if spec.train_file:
        named = {"train": spec.train_file, "validation": spec.validation_file, "test": spec.test_file}
        return _with_labels({split: _read(file, spec) for split, file in named.items() if file}, spec)
    if spec.dataset:
        return _read_dataset(spec)
    assert task is not None
    if spec.data_dir:
        return _read_folder(spec, task)
    return _read_hub(task)


def read_file(
    path: str | Path, *, texts: Sequence[str] = (), encoding: str | None = None, delimiter: str | None = None
) -> Source:
    """Read one file into a table in memory, whatever its suffix among ``SUFFIXES``; ``.txt`` is one row ``text``.

    Args:
        path: The file; text formats may be compressed (``.gz``).
        texts: Columns of a CSV that hold text, whatever it looks like.
        encoding: Of a text file; by default what its byte order mark says, else UTF-8.
        delimiter: Of a CSV; by default the one its header has.

    Raises:
        ValueError: The file isn't there, has another suffix, can't be parsed or has no rows.
    """
    file = Path(path)
    if not file.is_file():
        siblings = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
        raise ValueError(f"no file {file}{nearest(file.name, siblings)}")
    table = parse_file(file, texts=texts, encoding=encoding, delimiter=delimiter)
    try:
        rows = Dataset(table)
    except (pa.ArrowException, TypeError, ValueError) as error:  # a type that datasets can't hold
        raise ValueError(f"{file}: {error}") from error
    return _not_empty(Source(rows, str(file)))


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


def _read(file: Path, spec: DataSpec) -> Source:
    texts = spec.texts if spec.label_column is None else (*spec.texts, spec.label_column)
    return read_file(file, texts=texts, encoding=spec.encoding, delimiter=spec.delimiter)


def _with_labels(splits: dict[str, Source], spec: DataSpec) -> dict[str, Source]:
    """Return the splits of the user's own files, with the labels of delimited ones as what those of train are."""
    column = spec.label_column
    files = {"train": spec.train_file, "validation": spec.validation_file, "test": spec.test_file}
    delimited = {split for split, file in files.items() if file and ending(file) in DELIMITED}
    if column is None or column in spec.texts or column not in splits["train"].rows.column_names or not delimited:
        return splits
    labels = splits["train"].rows.data.column(column).to_pylist()
    reading = reading_of(labels, spec, delimited="train" in delimited)
    made = dict(splits)
    for split in delimited:
        source = splits[split]
        if column in source.rows.column_names:
            labels = read_labels(source.rows.data.column(column).to_pylist(), reading, spec, source.where)
            made[split] = source._replace(rows=source.rows.remove_columns(column).add_column(column, labels))
    return made


def _read_folder(spec: DataSpec, task: Task) -> dict[str, Source]:
    assert spec.data_dir is not None
    data_dir = spec.data_dir
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
        endings = [*SUFFIXES, *(suffix + GZIP for suffix in SUFFIXES)]
        files = [folder / f"{name}{suffix}" for name in names for suffix in endings]
        found = next((file for file in files if file.is_file()), None)
        if found:
            splits[split] = _read(found, spec)
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


def _read_dataset(spec: DataSpec) -> dict[str, Source]:
    """Read a dataset of the hub, or a folder that ``datasets`` understands, by the splits that the spec names."""
    assert spec.dataset is not None
    what = f"{spec.dataset}{f' {spec.config}' if spec.config else ''}"
    splits: dict[str, Source] = {}
    try:
        with quiet():
            present = datasets.get_dataset_split_names(spec.dataset, spec.config)
            for split in ("train", "validation", "test"):
                name = spec.splits.get(split, split)
                if name.partition("[")[0] in present:
                    rows = datasets.load_dataset(spec.dataset, spec.config, split=name)
                    splits[split] = _not_empty(Source(_named_classes(rows), f"{what}, split {name}"))
                elif split in spec.splits or split == "train":
                    raise ValueError(
                        f"{what} has no split {name!r}{nearest(name, present)}; it has {', '.join(present)}: say which "
                        f"one in data.splits: {{{split}: ...}}"
                    )
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"data.dataset={spec.dataset!r} can't be loaded: {' '.join(str(error).split())[:300]}: check its id on the "
            "hub, the network and, for a gated one, the login"
        ) from error
    return splits


def _named_classes(rows: Dataset) -> Dataset:
    """Return the rows with the names of classes in place of their numbers."""
    for column, feature in rows.features.items():
        if isinstance(feature, ClassLabel):
            names = [None if n is None or n < 0 else feature.int2str(n) for n in rows.data.column(column).to_pylist()]
            rows = rows.remove_columns(column).add_column(column, names)
    return rows


def _not_empty(source: Source) -> Source:
    if not len(source.rows):
        raise ValueError(f"{source.where} is empty: it has no rows")
    return source
