"""The heat map of enabled paths as a picture: one history, or several on one scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.report.drawing import check_name, figure_class, new_figure, save_figure
from rankwise.report.enabled import Frequency, aligned, caption, frequency
from rankwise.report.history import OUTSIDE, History, read_history, searches
from rankwise.report.terminal import DARK, LABELLED_COLUMNS, render_frequency

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

__all__ = [
    "Frequency",
    "compare_frequency",
    "draw_frequency",
    "figure_class",
    "frequency",
    "plot_frequency",
    "read_history",
    "render_frequency",
]

COLOUR_MAP = "Blues"
ROOMY_COLUMNS = 12  # up to so many cells in a row there is room for a percent sign
ROW_HEIGHT = 0.46  # inches


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
    target = check_name(path)
    return save_figure(plot_frequency(history, title=title), target)


def plot_frequency(history: History, *, title: str | None = None) -> Figure:
    """Return the heat map: a row for each projection or kind, a column for each block.

    Args:
        history: The records of ``rankwise.history(model)``.
        title: Heading above the picture; what the cells mean stands under it.

    Raises:
        ValueError: The history holds no search.
        ModuleNotFoundError: matplotlib is not installed.
    """
    return _figure({"": frequency(history)}, title or "Enabled paths", caption(history))


def compare_frequency(histories: Mapping[str, History], *, title: str | None = None) -> Figure:
    """Return one heat map for each history, with the same rows, columns and colours.

    They stand beside each other where that leaves room for the numbers, else below each other.

    Args:
        histories: The records of each run by the title of its heat map.
        title: Heading above the picture.

    Raises:
        ValueError: There is no history, or one holds no search.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if not histories:
        raise ValueError("no history was given, so there is nothing to draw")
    tables = aligned([frequency(history) for history in histories.values()])
    counts = {searches(history) for history in histories.values()}
    if len(counts) == 1:
        names, note = list(histories), caption(next(iter(histories.values())))
    else:
        names = [f"{name} ({searches(history)})" for name, history in histories.items()]
        note = "How often each path was enabled (% of the searches)"
    return _figure(dict(zip(names, tables, strict=True)), title or "Enabled paths", note)


def _figure(tables: Mapping[str, Frequency], title: str, note: str) -> Figure:
    first = next(iter(tables.values()))
    columns = len(first.columns)
    beside = len(tables) * columns <= LABELLED_COLUMNS
    across, down = (len(tables), 1) if beside else (1, len(tables))
    roomy = across * columns <= ROOMY_COLUMNS
    cell = 0.62 if roomy else 0.37 if columns <= LABELLED_COLUMNS else 0.28
    panel = (0.3 + cell * columns, 0.75 + ROW_HEIGHT * len(first.rows))
    width = 1.1 + 0.09 * max(map(len, first.rows)) + panel[0] * across
    figure = new_figure(max(width, 5.5), max(0.75 + panel[1] * down, 2.4), title, note)
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    grid[0, 0].invert_yaxis()  # the first row on top, in all of them
    for axes, (name, table) in zip(grid.flat, tables.items(), strict=True):
        image = _panel(axes, name, table, percent="%" if roomy else "")
    for axes in grid[-1]:
        axes.set_xlabel("block", fontsize=10)
    bar = figure.colorbar(image, ax=list(grid.flat), ticks=[0, 0.5, 1], pad=0.02, aspect=max(4 * panel[1] * down, 8))
    bar.ax.set_yticklabels(["never", "half", "always"], fontsize=9)
    bar.outline.set_visible(False)
    return figure


def _panel(axes: Axes, name: str, table: Frequency, *, percent: str) -> QuadMesh:
    image = axes.pcolormesh(table.values, cmap=COLOUR_MAP, vmin=0, vmax=1, edgecolors="white", linewidth=2)
    axes.set_title(name, loc="left", fontsize=11)
    labels = ["outside" if column == OUTSIDE else str(column) for column in table.columns]
    step = 1 + len(labels) // (2 * LABELLED_COLUMNS)
    axes.set_xticks([place + 0.5 for place in range(0, len(labels), step)], labels[::step], fontsize=9)
    axes.set_yticks([place + 0.5 for place in range(len(table.rows))], table.rows, fontsize=10)
    axes.tick_params(length=0)
    axes.set_facecolor("0.92")  # where there is no such path
    for spine in axes.spines.values():
        spine.set_visible(False)
    if len(table.columns) <= LABELLED_COLUMNS:
        _label_cells(axes, table, percent)
    return image


def _label_cells(axes: Axes, table: Frequency, percent: str) -> None:
    for y, shares in enumerate(table.values):
        for x, share in enumerate(shares):
            if not math.isnan(share):
                ink = "white" if share > DARK else "0.2"
                label = f"{100 * share:.0f}{percent}"
                axes.text(x + 0.5, y + 0.5, label, ha="center", va="center", fontsize=9, color=ink)
