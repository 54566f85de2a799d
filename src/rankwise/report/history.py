"""A run's searches and edits as they were written down, and where a path's name places it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwise.rules import records
from rankwise.rules.kinds import BLOCK_KINDS
from rankwise.rules.records import Record, SearchRecord, from_lines
from rankwise.wiring.anatomy import locate

History = Sequence[Record]

IN_BLOCKS = re.compile(r"^layers\.(?P<first>\d+)(?:-(?P<last>\d+))?\.(?P<row>.+)$")
OUTSIDE = -1  # the column of paths that lie in no block
# The paper's order; the other projections follow by name, and then the kinds.
FIRST_ROWS = (("query", "q_proj", "q"), ("value", "v_proj", "v"))


def read_history(path: str | Path) -> list[Record]:
    """Read the searches and edits that a run or ``save_pretrained`` wrote to ``search_history.jsonl``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is neither a search nor an edit; the message gives its number.
    """
    return from_lines(Path(path).read_text(encoding="utf-8"), path)


def read_lines(
    path: str | Path, fields: Callable[[Mapping[str, Any]], Iterable[str]], what: str
) -> list[dict[str, Any]]:
    """Read a file with one JSON object per line.

    Args:
        path: The file.
        fields: Says which fields an object must have.
        what: What an object is, for the message.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is no such object; the message gives its number.
    """
    found = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            _ = [record[field] for field in fields(record)]
            found.append(record)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is not {what} of rankwise: {line[:60]!r}") from error
    return found


def searched(history: History) -> list[SearchRecord]:
    """Return the searches of a history, without the edits in between.

    Raises:
        ValueError: There is none.
    """
    found = records.searches(history)
    if not found:
        raise ValueError("the history holds no search, so there is nothing to draw; was the model trained?")
    return found


def cells(name: str) -> Iterator[tuple[str, int]]:
    """Yield (row, column) of a path's name, one for each block it runs across."""
    match = IN_BLOCKS.match(name)
    place = locate(name)
    if match:
        first = int(match["first"])
        yield from ((match["row"], block) for block in range(first, int(match["last"] or first) + 1))
    elif place is not None:  # a model with two stacks of blocks names its paths in full
        yield f"{place.stack}.{place.inner}", place.index
    else:
        yield name, OUTSIDE


def row_of(name: str) -> str:
    """Return the projection or kind of a path, which is its row in every picture."""
    return next(cells(name))[0]


def in_order(rows: Iterable[str]) -> list[str]:
    """Sort rows: q and v first, the other projections by name, then the kinds that connect blocks."""
    return sorted(set(rows), key=_place)


def _place(row: str) -> tuple[int, int, str]:
    if row in BLOCK_KINDS:
        return 2, list(BLOCK_KINDS).index(row), row
    for position, same in enumerate(FIRST_ROWS):
        if row.rpartition(".")[2] in same:
            return 0, position, row
    return 1, 0, row


def searches(history: History) -> str:
    """Say how many searches there were."""
    count = len(searched(history))
    return f"{count} searches" if count > 1 else "one search"
