"""How often each path was enabled, block by block: as numbers, in the terminal and as a picture."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from rankwise.anatomy import locate
from rankwise.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

History = Sequence[Mapping[str, Any]]

IN_BLOCKS = re.compile(r"^layers\.(?P<first>\d+)(?:-(?P<last>\d+))?\.(?P<row>.+)$")
OUTSIDE = -1  # the column of paths that lie in no block
# The paper's order; what is listed in neither stands between the two, by name.
FIRST_ROWS = (("query", "q_proj", "q"), ("value", "v_proj", "v"))
LAST_ROWS = (("res1",), ("res2",), ("in",), ("cut",), ("layer",))

FORMATS = (".png", ".svg")
COLOUR_MAP = "Blues"
TINTS = ((247, 251, 255), (107, 174, 214), (8, 48, 107))  # the same map's ends and middle, for the terminal
LABELLED_COLUMNS = 24  # more blocks than that, and the cells get too narrow for a number
SHADES = "·░▒▓█"
DARK = 0.55  # cells above this share take white ink


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


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """Read the searches that a run or ``save_pretrained`` wrote to ``search_history.jsonl``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is not a search; the message gives its number.
    """
    records = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            _ = record["scores"], record["unscored"], record["chosen"]
            records.append(record)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is not a search of rankwise: {line[:60]!r}") from error
    return records


def frequency(history: History) -> Frequency:
    """Return how often each path was enabled: the share of searches that chose it.

    A path that runs across several blocks counts in each of them.

    Args:
        history: The records of ``rankwise.history(model)`` or the lines of ``search_history.jsonl``.

    Raises:
        ValueError: The history holds no search.
    """
    if not history:
        raise ValueError("the history holds no search, so there is nothing to draw; was the model trained?")
    chosen: dict[tuple[str, int], int] = {}
    for record in history:
        for name in {*record["scores"], *record["unscored"], *record["chosen"]}:
            for cell in _cells(name):
                chosen[cell] = chosen.get(cell, 0) + (name in record["chosen"])
    rows = sorted({row for row, _ in chosen}, key=_row_order)
    columns = sorted({column for _, column in chosen}, key=lambda column: (column == OUTSIDE, column))
    values = [[chosen.get((row, column), math.nan) / len(history) for column in columns] for row in rows]
    return Frequency(rows, columns, values)


def _cells(name: str) -> Iterator[tuple[str, int]]:
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


def _row_order(row: str) -> tuple[int, int, str]:
    """Sort q and v first, the other projections by name, then the kinds that connect blocks."""
    for group, names in ((0, FIRST_ROWS), (2, LAST_ROWS)):
        for position, same in enumerate(names):
            if row.rpartition(".")[2] in same:
                return group, position, row
    return 1, 0, row


def caption(history: History) -> str:
    """Return one line that says what the cells mean."""
    searches = f"{len(history)} searches" if len(history) > 1 else "one search"
    return f"How often each path was enabled (% of {searches})"


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
    pale, middle, deep = TINTS
    start, end, way = (pale, middle, 2 * share) if share < 0.5 else (middle, deep, 2 * share - 1)
    red, green, blue = (round(a + (b - a) * way) for a, b in zip(start, end, strict=True))
    ink = "rgb(255,255,255)" if share > DARK else "rgb(40,40,40)"
    return Text(f"{share:.0%}".center(6), style=f"{ink} on rgb({red},{green},{blue})")


def _shaded_cell(share: float) -> Text:
    """Two characters, darker with the share; what was never enabled is a dot."""
    if math.isnan(share):
        return Text("  ")
    return Text(SHADES[math.ceil(share * (len(SHADES) - 1))] * 2, style="blue")


def draw_frequency(history: History, path: str | Path, *, title: str | None = None) -> Path:
    """Write the heat map as a picture and return its path.

    Args:
        history: The records of ``rankwise.history(model)``.
        path: A file name that ends in ``.png`` or ``.svg``.
        title: Heading above the picture; what the cells mean stands under it.

    Raises:
        ValueError: The history holds no search, or the name ends otherwise.
        ModuleNotFoundError: matplotlib is not installed.
    """
    target = Path(path)
    if target.suffix not in FORMATS:
        raise ValueError(f"path={str(path)!r} must end in one of {', '.join(FORMATS)}, not {target.suffix!r}")
    figure = _figure(history, title or "Enabled paths")
    write_atomic(target, lambda file: figure.savefig(file, format=target.suffix[1:], dpi=150))
    return target


def figure_class() -> type[Figure]:
    """Import matplotlib, which only a picture needs; call it before spending time on what shall be drawn.

    Raises:
        ModuleNotFoundError: It is not installed; the message says what to install.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a picture needs matplotlib: pip install 'rankwise[report]'") from error
    return Figure


def _figure(history: History, title: str) -> Figure:
    table = frequency(history)
    size = (3.2 + 0.62 * len(table.columns), 1.7 + 0.5 * len(table.rows))
    figure = figure_class()(figsize=(max(size[0], 5.5), max(size[1], 2.4)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.pcolormesh(table.values, cmap=COLOUR_MAP, vmin=0, vmax=1, edgecolors="white", linewidth=2)
    _label_axes(axes, table)
    axes.set_title(f"{title}\n", loc="left", fontsize=12, fontweight="bold")
    axes.text(0, 1.03, caption(history), transform=axes.transAxes, fontsize=9, color="0.35")
    if len(table.columns) <= LABELLED_COLUMNS:
        _label_cells(axes, table)
    bar = figure.colorbar(image, ax=axes, ticks=[0, 0.5, 1], pad=0.02)
    bar.ax.set_yticklabels(["never", "half", "always"], fontsize=9)
    bar.outline.set_visible(False)
    return figure


def _label_axes(axes: Axes, table: Frequency) -> None:
    """Name rows and blocks, the first row on top, and take the frame off."""
    labels = ["outside" if column == OUTSIDE else str(column) for column in table.columns]
    step = 1 + len(labels) // (2 * LABELLED_COLUMNS)
    axes.invert_yaxis()
    axes.set_xticks([place + 0.5 for place in range(0, len(labels), step)], labels[::step], fontsize=9)
    axes.set_yticks([place + 0.5 for place in range(len(table.rows))], table.rows, fontsize=10)
    axes.tick_params(length=0)
    axes.set_xlabel("block", fontsize=10)
    axes.set_facecolor("0.95")  # where there is no such path
    for spine in axes.spines.values():
        spine.set_visible(False)


def _label_cells(axes: Axes, table: Frequency) -> None:
    for y, shares in enumerate(table.values):
        for x, share in enumerate(shares):
            if not math.isnan(share):
                ink = "white" if share > DARK else "0.2"
                axes.text(x + 0.5, y + 0.5, f"{share:.0%}", ha="center", va="center", fontsize=9, color=ink)
