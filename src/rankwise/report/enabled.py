"""How often each path was enabled, block by block, as numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rankwise.report.history import OUTSIDE, History, cells, in_order, searched, searches


class Frequency(NamedTuple):
    """The share of searches that enabled each path.

    Args:
        rows: Projection names and kinds, in the paper's order.
        columns: Block numbers, ``OUTSIDE`` for paths in no block.
        values: One list per row: shares in [0, 1], NaN where there is no such path.
    """

    rows: list[str]
    columns: list[int]
    values: list[list[float]]


def frequency(history: History) -> Frequency:
    """Return how often each path was enabled: the share of searches that chose it.

    A path that runs across several blocks counts in each of them.

    Args:
        history: The records of ``rankwise.history(model)`` or the lines of ``search_history.jsonl``.

    Raises:
        ValueError: The history holds no search.
    """
    records = searched(history)
    chosen: dict[tuple[str, int], int] = {}
    for record in records:
        for name in record.paths:
            for cell in cells(name):
                chosen[cell] = chosen.get(cell, 0) + (name in record.chosen)
    rows = in_order(row for row, _ in chosen)
    columns = _in_order(column for _, column in chosen)
    values = [[chosen.get((row, column), math.nan) / len(records) for column in columns] for row in rows]
    return Frequency(rows, columns, values)


def aligned(tables: Sequence[Frequency]) -> list[Frequency]:
    """Give all tables the same rows and columns, those of any of them; cells that one lacks are NaN there."""
    rows = in_order(row for table in tables for row in table.rows)
    columns = _in_order(column for table in tables for column in table.columns)
    return [Frequency(rows, columns, _spread(table, rows, columns)) for table in tables]


def _in_order(columns: Iterable[int]) -> list[int]:
    return sorted(set(columns), key=lambda column: (column == OUTSIDE, column))


def _spread(table: Frequency, rows: list[str], columns: list[int]) -> list[list[float]]:
    known = {
        (row, column): share
        for row, shares in zip(table.rows, table.values, strict=True)
        for column, share in zip(table.columns, shares, strict=True)
    }
    return [[known.get((row, column), math.nan) for column in columns] for row in rows]


def caption(history: History) -> str:
    """Return one line that says what the cells mean."""
    return f"How often each path was enabled (% of {searches(history)})"
