"""Files as tables: CSV, JSON, JSON lines, Parquet and text, by their endings, in whatever encoding they say.

Text files may be compressed (``.gz``). A cell that CSV leaves empty is null, as JSON's ``null`` is; what that means for
a text or a label is decided once for all formats, in ``rankwise.tasks.missing``.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
DELIMITED = (".csv", ".tsv")
GZIP = ".gz"
DELIMITERS = (",", ";", "\t", "|")
# The longest first: UTF-16's mark is how UTF-32's begins.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def ending(file: Path) -> str:
    """Return what a file's name says of its format, in lower case: ``.csv`` of ``A.CSV.gz``.

    Raises:
        ValueError: The ending is none of ``SUFFIXES``.
    """
    suffixes = [suffix.lower() for suffix in file.suffixes]
    zipped = suffixes[-1:] == [GZIP]
    last = (suffixes[:-1] if zipped else suffixes)[-1:]
    if not last or last[0] not in SUFFIXES:
        given = "".join(file.suffixes[-2:] if zipped else file.suffixes[-1:])
        raise ValueError(f"{file}: suffix {given!r} is not one of {', '.join(SUFFIXES)} (text also with {GZIP})")
    if zipped and last[0] == ".parquet":
        raise ValueError(f"{file}: Parquet compresses by itself; unpack the file, or write it anew")
    return last[0]


def parse_file(
    file: Path, *, texts: Collection[str] = (), encoding: str | None = None, delimiter: str | None = None
) -> pa.Table:
    """Parse a file into a table; ``.txt`` is one row with a column ``text``.

    Args:
        file: The file.
        texts: Columns of a CSV that hold text, whatever it looks like.
        encoding: Of a text file; by default what its byte order mark says, else UTF-8.
        delimiter: Of a CSV; by default the one its header has.

    Raises:
        ValueError: The file can't be parsed; the message names it, and the line or row.
    """
    kind = ending(file)
    if kind == ".parquet":
        return _parse_parquet(file)
    text = read_text(file, encoding)
    if kind in DELIMITED:
        return _parse_csv(text, file, texts, delimiter or _delimiter(text, kind, file))
    if kind == ".txt":
        return pa.table({"text": [text] if text.strip() else pa.array([], pa.string())})
    return _table(_parse_json(text, file) if kind == ".json" else list(_parse_lines(text, file)), file)


def read_text(file: Path, encoding: str | None = None) -> str:
    """Return the text of a file, unpacked where it ends in ``.gz``.

    Raises:
        ValueError: The file is not in that encoding (with the line), or not what gzip writes.
    """
    raw = file.read_bytes()
    if file.suffix.lower() == GZIP:
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{file} is no whole gzip file ({error}): copy it again") from error
    marked = next((name for mark, name in MARKS if raw.startswith(mark)), "utf-8")
    chosen = encoding or marked
    try:
        text = raw.decode(chosen)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{file}, line {line}: byte 0x{raw[error.start]:02x} is not {chosen} ({error.reason}): say what it is, "
            f"for example data.encoding: {'utf-16-le' if bytes(1) in raw else 'cp1252'}"
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(
            f"{file}, line {line} holds a NUL character, which no text has: it may be UTF-16 without a byte order "
            "mark (data.encoding: utf-16-le), or damaged"
        )
    return text


def _delimiter(text: str, kind: str, file: Path) -> str:
    if kind == ".tsv":
        return "\t"
    header = text.partition("\n")[0]
    found = [each for each in DELIMITERS if each in header]
    if len(found) > 1 and "," not in found:
        raise ValueError(
            f"{file}: its header {header.strip()[:80]!r} has {' and '.join(map(repr, found))}: say which one separates "
            "columns, for example data.delimiter: ';'"
        )
    return "," if not found or "," in found else found[0]


def _parse_csv(text: str, file: Path, texts: Collection[str], delimiter: str) -> pa.Table:
    data = text.encode("utf-8")
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(data),
            # One block, so that a column's type is that of all its rows; one thread, so that errors know their row.
            read_options=pa.csv.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                null_values=[""],  # a text may read "null" or "NA"
                strings_can_be_null=True,
                column_types=dict.fromkeys(texts, pa.string()),
            ),
        )
    except pa.ArrowException as error:
        raise ValueError(f"{file}: {error}") from error
    _check_columns(table.column_names, file)
    return table


def _parse_parquet(file: Path) -> pa.Table:
    try:
        _check_columns(pa.parquet.read_schema(file).names, file)
        table = pa.parquet.read_table(file, page_checksum_verification=True)
        table.validate(full=True)
        for number, field in enumerate(table.schema):
            if pa.types.is_dictionary(field.type):  # pandas' categories
                plain = table.column(number).cast(field.type.value_type)
                table = table.set_column(number, field.name, plain)
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file} is damaged or no Parquet file ({' '.join(str(error).split())[:300]}): copy or write it again"
        ) from error
    return table.replace_schema_metadata(None)


def _check_columns(names: list[str], file: Path) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        places = [number for number, name in enumerate(names, start=1) if name == twice[0]]
        raise ValueError(
            f"{file} has {len(places)} columns named {twice[0]!r} (columns {', '.join(map(str, places))}): rename all "
            "but one"
        )


def _parse_json(text: str, file: Path) -> list[Any]:
    try:
        rows = json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}, line {error.lineno}: not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: {_json_fault(error)}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{file} holds a JSON {type(rows).__name__}, not a list of objects: for JSON lines use .jsonl")
    return rows


def _parse_lines(text: str, file: Path) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: JSON allows U+2028 inside a string
        if line.strip():
            try:
                yield json.loads(line, object_pairs_hook=_unique_keys)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number}: not JSON ({error.msg}): {line.strip()[:60]!r}") from error
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file}, line {number}: {_json_fault(error)}") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"key {twice[0]!r} stands twice in one object: keep one of them")
    return dict(pairs)


def _json_fault(error: Exception) -> str:
    return "brackets are nested too deeply" if isinstance(error, RecursionError) else str(error)


def _table(rows: list[Any], file: Path) -> pa.Table:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{file}, row {number} holds {row!r:.60}, not an object with columns")
    columns = dict.fromkeys(column for row in rows for column in row)
    return pa.table({column: _array([row.get(column) for row in rows], column, file) for column in columns})


def _array(values: list[Any], column: str, file: Path) -> pa.Array:
    """Return a column; lists and objects stay JSON, for messages differ in their keys from row to row."""
    try:
        if any(isinstance(value, list | dict) for value in values):
            texts = [None if value is None else json.dumps(value) for value in values]
            return pa.array(texts, pa.string()).cast(pa.json_())
        return pa.array(values)
    except (pa.ArrowException, UnicodeError, OverflowError) as error:
        raise ValueError(f"{file}, row {_culprit(values, column)}") from error


def _culprit(values: list[Any], column: str) -> str:
    """Return the number of the first row whose value does not fit those before, and what it is."""
    first = next(value for value in values if value is not None)
    for number, value in enumerate(values, start=1):
        if value is not None and _sort(value) != _sort(first):
            return f"{number}: column {column!r} mixes types: {value!r:.60} after {first!r:.60}"
        try:
            pa.array([value])
        except (pa.ArrowException, UnicodeError, OverflowError) as error:
            why = " ".join(str(error).split())[:100]
            return f"{number}: column {column!r} holds {value!r:.60}, which can't be read ({why})"
    return f"{len(values)}: column {column!r} holds values that don't fit each other"


def _sort(value: Any) -> str:
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
