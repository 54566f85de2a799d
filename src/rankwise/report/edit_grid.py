"""A metric over the numbers of merges and injections (arXiv 2503.00572, figure 6)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean, stdev
from typing import TYPE_CHECKING, NamedTuple

from rankwise.report.drawing import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL = (0.78, 0.52)  # inches
BEST = "#C9500F"


class Outcome(NamedTuple):
    """What one run reached.

    Args:
        merges: How many merges it was told to make.
        injections: How many injections.
        seed: Its seed; a second run of the same cell and seed replaces the first.
        value: The metric.
    """

    merges: int
    injections: int
    seed: int
    value: float


class EditGrid(NamedTuple):
    """The metric by cell.

    Args:
        merges: The columns.
        injections: The rows.
        values: One list for each row: the mean over the seeds, NaN where no run was made.
        spread: Their standard deviations, NaN for fewer than two seeds.
        seeds: How many seeds each cell has.
        best: Row and column of the best mean.
    """

    merges: list[int]
    injections: list[int]
    values: list[list[float]]
    spread: list[list[float]]
    seeds: list[list[int]]
    best: tuple[int, int]


def edit_grid(outcomes: Iterable[Outcome], *, greater_is_better: bool = True) -> EditGrid:
    """Return the mean of a metric for each pair of merges and injections that was tried; the first one wins a tie.

    Args:
        outcomes: The runs; they should differ in nothing else than merges, injections and seed.
        greater_is_better: Whether the best cell is the one with the largest mean.

    Raises:
        ValueError: There is no run with a number.
    """
    cells: dict[tuple[int, int], dict[int, float]] = {}
    for run in outcomes:
        if not math.isnan(run.value):
            cells.setdefault((run.injections, run.merges), {})[run.seed] = run.value
    if not cells:
        raise ValueError("no run has a value, so there is nothing to draw; are they finished?")
    rows, columns = (sorted({cell[axis] for cell in cells}) for axis in (0, 1))
    table = [[list(cells.get((row, column), {}).values()) for column in columns] for row in rows]
    means = {cell: fmean(values.values()) for cell, values in sorted(cells.items())}
    row, column = (max if greater_is_better else min)(means, key=lambda cell: means[cell])
    return EditGrid(
        columns,
        rows,
        [[fmean(values) if values else math.nan for values in each] for each in table],
        [[stdev(values) if len(values) > 1 else math.nan for values in each] for each in table],
        [[len(values) for values in each] for each in table],
        (rows.index(row), columns.index(column)),
    )


def plot_edit_grid(
    outcomes: Iterable[Outcome],
    *,
    metric: str,
    split: str,
    greater_is_better: bool = True,
    title: str | None = None,
) -> Figure:
    """Return the heat map: a column for each number of merges, a row for each number of injections, the best outlined.

    Args:
        outcomes: The runs; they should differ in nothing else than merges, injections and seed.
        metric: What the values are.
        split: What they were measured on.
        greater_is_better: Whether the best cell is the one with the largest mean.
        title: What stands before the metric in the heading.

    Raises:
        ValueError: There is no run with a number.
        ModuleNotFoundError: matplotlib is not installed.
    """
    found = edit_grid(outcomes, greater_is_better=greater_is_better)
    columns, rows = len(found.merges), len(found.injections)
    heading = f"{metric} on {split}, {_seeds(found)}"
    size = (max(1.9 + CELL[0] * columns, 5.5), max(1.75 + CELL[1] * rows, 2.9))
    figure = new_figure(*size, f"{title}: {heading}" if title else heading, _note(found, split))
    axes = figure.add_subplot()
    colours = "GnBu" if greater_is_better else "GnBu_r"
    low, high = _range(found)
    image = axes.pcolormesh(found.values, cmap=colours, edgecolors="white", linewidth=2, vmin=low, vmax=high)
    axes.set_xticks([place + 0.5 for place in range(columns)], list(map(str, found.merges)), fontsize=10)
    axes.set_yticks([place + 0.5 for place in range(rows)], list(map(str, found.injections)), fontsize=10)
    axes.set_xlabel("merges", fontsize=10)
    axes.set_ylabel("injections", fontsize=10)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _label(axes, found, greater_is_better)
    bar = figure.colorbar(image, ax=axes, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9)
    return figure


def _seeds(found: EditGrid) -> str:
    counts = sorted({count for row in found.seeds for count in row if count})
    if len(counts) > 1:
        return f"{counts[0]} to {counts[-1]} seeds"
    return f"{counts[0]} seeds" if counts[0] > 1 else "one seed"


def _note(found: EditGrid, split: str) -> str:
    row, column = found.best
    tried = sum(count > 0 for row_ in found.seeds for count in row_)
    parts = ["Mean ± standard deviation over the seeds" if any(count > 1 for r in found.seeds for count in r) else ""]
    parts.append(f"outlined: the best, {found.merges[column]} merges and {found.injections[row]} injections")
    if tried > 1:
        parts.append(f"picked among {tried}, it flatters itself on {split}: report it on other data")
    told = "; ".join(part for part in parts if part)
    return told[0].upper() + told[1:]


def _range(found: EditGrid) -> tuple[float, float]:
    """Return the ends of the colour scale; equal values get one in the middle."""
    numbers = [value for row in found.values for value in row if not math.isnan(value)]
    low, high = min(numbers), max(numbers)
    room = (high - low) * 0.15 or abs(high) * 0.1 or 1.0  # the best is not so dark that its number can't be read
    return low - room / 3, high + room


def _label(axes: Axes, found: EditGrid, greater_is_better: bool) -> None:
    from matplotlib.patches import Rectangle

    low, high = _range(found)
    decimals = 4 if high < 10 else 2
    for y, row in enumerate(found.values):
        for x, value in enumerate(row):
            if math.isnan(value):
                continue
            share = (value - low) / (high - low)
            ink = "white" if (share if greater_is_better else 1 - share) > 0.65 else "0.15"
            spread = found.spread[y][x]
            lift = 0.0 if math.isnan(spread) else 0.13
            axes.text(
                x + 0.5, y + 0.5 + lift, f"{value:.{decimals}f}", ha="center", va="center", fontsize=9.5, color=ink
            )
            if lift:
                axes.text(
                    x + 0.5, y + 0.24, f"± {spread:.{decimals}f}", ha="center", va="center", fontsize=7, color=ink
                )
    y, x = found.best
    axes.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=BEST, linewidth=2.6, clip_on=False))
