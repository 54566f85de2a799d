"""One rule for what is not there, whatever the file's format: null, an empty text, and white space alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from rankwise.tasks.read import Source, check_column

Missing = Literal["refuse", "drop", "keep"]
TEXT_TYPES = (pa.types.is_string, pa.types.is_large_string)


def without_missing(
    source: Source,
    texts: Sequence[str],
    labels: Sequence[str] = (),
    *,
    missing: Missing = "refuse",
    remedy: str | None = None,
) -> tuple[Source, int]:
    """Return the rows that have every text and label, and how many had not.

    Args:
        source: The rows.
        texts: Columns that must hold text.
        labels: Columns that must hold a label.
        missing: What to do with a row that lacks one: ``"refuse"`` raises, ``"drop"`` leaves it out, ``"keep"`` reads
            a text as empty (a label can't be kept).
        remedy: What to do about a refusal, where ``data.missing`` of a recipe does not rule.

    Raises:
        ValueError: A column is missing or holds no text; a value is missing and may not be, with file and row.
    """
    for column in (*texts, *labels):
        check_column(source, column)
    for column in texts:
        check_text(source, column)
    absent = {column: _absent(source.rows.data.column(column)) for column in (*texts, *labels)}
    for column, flags in absent.items():
        if missing == "refuse" or (missing == "keep" and column in labels):
            _refuse(source, column, flags, label=column in labels, remedy=remedy)
    if missing == "keep":
        return _filled(source, texts), 0
    kept = [row for row in range(len(source.rows)) if not any(flags[row] for flags in absent.values())]
    lost = len(source.rows) - len(kept)
    if not lost:
        return source, 0
    if not kept:
        raise ValueError(f"{source.where}: every row lacks a text or a label in {', '.join(absent)}: nothing is left")
    return Source(source.rows.select(kept), source.where, [source.number(row) for row in kept]), lost


def check_text(source: Source, column: str) -> None:
    """Raise a ``ValueError`` where a column holds something besides text and nothing."""
    kind = source.rows.data.column(column).type
    if not (is_text(kind) or pa.types.is_null(kind)):
        raise ValueError(f"{source.where}: column {column!r} holds {kind}, not text")


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a column of this type holds text."""
    return any(fits(kind) for fits in TEXT_TYPES)


def _absent(values: pa.ChunkedArray) -> list[bool]:
    if is_text(values.type):
        blank = pc.equal(pc.utf8_trim_whitespace(values), "")
        return pc.fill_null(blank, True).to_pylist()
    nan = pa.types.is_floating(values.type)
    return pc.is_null(values, nan_is_null=nan).to_pylist()


def _refuse(source: Source, column: str, flags: list[bool], *, label: bool, remedy: str | None) -> None:
    if not any(flags):
        return
    first = flags.index(True)
    value = source.rows.data.column(column)[first].as_py()
    ruled = f"say data.missing: drop to leave such rows out{'' if label else ', keep to train on them'}"
    raise ValueError(
        f"{source.where}, row {source.number(first)}: column {column!r} has no {'label' if label else 'text'} "
        f"({value!r}; {sum(flags):,} of {len(flags):,} rows): fill it in, or {remedy or ruled}"
    )


def _filled(source: Source, texts: Sequence[str]) -> Source:
    rows = source.rows
    for column in texts:
        values = rows.data.column(column)
        if values.null_count:
            filled = ["" if value is None else value for value in values.to_pylist()]
            rows = rows.remove_columns(column).add_column(column, filled)
    return Source(rows, source.where, source.numbers)
