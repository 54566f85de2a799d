"""Heat maps in the terminal: how often each path was enabled, and the ranks of a plan."""

from __future__ import annotations

import math

from rich.console import Group
from rich.table import Table
from rich.text import Text

from rankwise.report.enabled import caption, frequency
from rankwise.report.history import OUTSIDE, History
from rankwise.report.rank_map import Planned, depth_table, details, rank_table, summary

TINTS = ((247, 251, 255), (107, 174, 214), (8, 48, 107))  # ends and middle of the pictures' colour map
LABELLED_COLUMNS = 24  # more blocks than that, and the cells get too narrow for a number
SHADES = "·░▒▓█"
DARK = 0.55  # cells above this share take white ink


def render_frequency(history: History) -> Group:
    """Return the heat map for the terminal: a row for each projection or kind, a column for each block.

    The numbers say the same without colours. Beyond 24 blocks shades stand in for numbers.

    Raises:
        ValueError: The history holds no search.
    """
    rows, columns, values = frequency(history)
    labelled = len(columns) <= LABELLED_COLUMNS
    table = Table(box=None, padding=0, collapse_padding=True, pad_edge=False)
    table.add_column("block ", style="bold", no_wrap=True)
    for position, column in enumerate(columns):
        table.add_column(_column_label(column, position, labelled), no_wrap=True)
    for row, shares in zip(rows, values, strict=True):
        table.add_row(f"{row} ", *(_labelled_cell(share) if labelled else _shaded_cell(share) for share in shares))
    return Group(Text(caption(history)), table)


def _column_label(column: int, position: int, labelled: bool) -> str:
    """Name a block above its cell; narrow cells have room for every fifth number."""
    if column == OUTSIDE:
        return " other " if labelled else "* "
    if labelled:
        return str(column).center(6)
    return str(column).ljust(2) if position % 5 == 0 else "  "


def _labelled_cell(share: float) -> Text:
    if math.isnan(share):
        return Text("·".center(6), style="dim")
    return Text(f"{share:.0%}".center(6), style=_style(share))


def _style(share: float) -> str:
    pale, middle, deep = TINTS
    start, end, way = (pale, middle, 2 * share) if share < 0.5 else (middle, deep, 2 * share - 1)
    red, green, blue = (round(a + (b - a) * way) for a, b in zip(start, end, strict=True))
    ink = "rgb(255,255,255)" if share > DARK else "rgb(40,40,40)"
    return f"{ink} on rgb({red},{green},{blue})"


def _shaded_cell(share: float) -> Text:
    """Two characters, darker with the share; what was never enabled is a dot."""
    if math.isnan(share):
        return Text("  ")
    return Text(SHADES[math.ceil(share * (len(SHADES) - 1))] * 2, style="blue")


def render_ranks(plan: Planned) -> Group:
    """Return a plan's ranks for the terminal: a row for each projection or kind, a column for each block."""
    rows, columns, values = rank_table(plan.ranks)
    most = max((rank for ranks in values for rank in ranks if not math.isnan(rank)), default=1) or 1
    table = Table(box=None, padding=0, collapse_padding=True, pad_edge=False)
    table.add_column("block ", style="bold", no_wrap=True)
    for column in columns:
        table.add_column("other" if column == OUTSIDE else str(column).center(4), no_wrap=True)
    for row, ranks in zip(rows, values, strict=True):
        table.add_row(f"{row} ", *(_rank_cell(rank, most) for rank in ranks))
    below = [Text(line) for line in (summary(plan), *details(plan))]
    warned = [Text(f"Warning: {note}", style="yellow") for note in plan.warnings]
    return Group(Text("Rank of each projection and kind by block"), table, *_depths(plan), *below, *warned)


def _depths(plan: Planned) -> list[Table]:
    found = depth_table(plan)
    if found is None:
        return []
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for head in found.heads:
        table.add_column(head, justify="right")
    for number, row in enumerate(found.rows):
        mark = " <- the plan" if number == found.chosen else ""
        table.add_row(*row[:-1], f"{row[-1]}{mark}", style="bold" if mark else None)
    return [table]


def _rank_cell(rank: float, most: float) -> Text:
    if math.isnan(rank):
        return Text("".center(4))
    if not rank:
        return Text("·".center(4), style="dim")
    return Text(f"{rank:.0f}".center(4), style=_style(rank / most))
