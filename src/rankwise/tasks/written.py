"""Labels as a CSV or TSV has them: text that stands for a number, or is the name of a class.

Such a file has no types, and a guess for each file retypes names: ``true`` became ``True``, and ``01`` became ``1``. So
labels are read as text, and what they are is decided once, on train.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from rankwise.tasks.spec import DataSpec

Reading = Literal["names", "wholes", "numbers"]

# Numbers as programs write them; one with a zero in front (01) is a code.
WHOLE = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.0*)?")
NUMBER = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?|[+-]?inf(?:inity)?", re.IGNORECASE)
NAN = "nan"  # a missing number, as some programs write it
DIGITS = 18  # an int64 holds every whole number with so many


def reading_of(train: Sequence[Any], spec: DataSpec, *, delimited: bool) -> Reading:
    """Return what the labels of train are, and so those of every split.

    Args:
        train: The labels of train.
        spec: Its ``labels`` and ``kind`` come first.
        delimited: Whether they are from a file without types. In another file a text is a name, whatever it looks like.
    """
    if spec.kind == "regression":
        return "numbers"
    if spec.labels or (not delimited and any(isinstance(value, str) for value in train)):
        return "names"
    texts = [str(value).strip() for value in train if value is not None]
    texts = [text for text in texts if text and text.lower() != NAN]
    if not texts or not all(NUMBER.fullmatch(text) for text in texts):
        return "names"
    if all(WHOLE.fullmatch(text) for text in texts):
        return "wholes"
    whole = all(float(text).is_integer() for text in texts)  # in another form (1e3): names, as the file has them
    return "names" if whole or spec.kind else "numbers"


def read_labels(texts: Sequence[str | None], reading: Reading, spec: DataSpec, where: str) -> list[Any]:
    """Return the labels of a delimited file's column in one type, as ``reading`` says.

    Args:
        texts: What the file has.
        reading: What the labels of train are.
        spec: Its ``labels`` are found in the file as they are; ``1.0`` is the class ``1``.
        where: What an error names the file by.

    Raises:
        ValueError: A label of a regression is no number; names the row.
    """
    if reading == "numbers":
        return [_number(text, row, spec, where) for row, text in enumerate(texts, start=1)]
    if reading == "wholes":
        return _wholes(texts)
    names = spec.labels or ()
    return [text if text is None or text in names else _named(text, names) for text in texts]


def _wholes(texts: Sequence[str | None]) -> list[Any]:
    """Return whole numbers; where one is none, or too long, all as text, ``1.0`` as ``1``, as classes are named."""
    labels = [None if text is None or not text.strip() else _plain(text) for text in texts]
    present = [label for label in labels if label is not None]
    numeric = [label for label in present if label.lower() != NAN]
    if not all(WHOLE.fullmatch(label) and len(label.lstrip("-")) <= DIGITS for label in numeric):
        return labels
    number = int if len(numeric) == len(present) else float
    return [label and number(label) for label in labels]


def _named(text: str, names: Sequence[str]) -> str:
    plain = _plain(text)
    return plain if plain in names else text


def _plain(text: str) -> str:
    """Return a whole number as it is counted, ``1`` for ``1.0``, and anything else as it is."""
    stripped = text.strip()
    if not WHOLE.fullmatch(stripped):
        return stripped if stripped.lower() == NAN else text
    whole = stripped.partition(".")[0]
    return "0" if whole == "-0" else whole


def _number(text: str | None, row: int, spec: DataSpec, where: str) -> float | None:
    if text is None or not text.strip():
        return None
    try:
        if "_" not in text:  # Python's way to group digits
            return float(text)
    except ValueError:
        pass
    raise ValueError(
        f"{where}, row {row}: {spec.label_column}={text!r} is not a finite number: correct it, or, if these are "
        "classes, say data.kind: classification"
    )
