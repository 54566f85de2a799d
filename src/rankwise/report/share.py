"""Which projections and kinds the enabled paths belong to, search by search."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from rankwise.report.drawing import DOTS, new_figure, percent_axis, plain, row_colours
from rankwise.report.history import History, in_order, row_of, searched
from rankwise.rules.kinds import BLOCK_KINDS, is_shortcut

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Shares(NamedTuple):
    """Shares of the number of enabled paths at each search.

    Args:
        steps: The optimizer step of each search.
        rows: Projection names and kinds, in the paper's order.
        values: One list per row: its share in [0, 1] at each search, NaN where nothing was enabled.
        linear: The share of all projections together at each search.
        expected: The share of projections among the candidates of each search, which choosing at random would give.
    """

    steps: list[int]
    rows: list[str]
    values: list[list[float]]
    linear: list[float]
    expected: list[float]


def shares(history: History) -> Shares:
    """Return what share of the enabled paths belongs to each projection and kind, at each search.

    Paths are counted, not their parameters; one that runs across several blocks counts once.

    Args:
        history: The records of ``rankwise.history(model)`` or the lines of ``search_history.jsonl``.

    Raises:
        ValueError: The history holds no search.
    """
    records = searched(history)
    rows = in_order(row_of(name) for record in records for name in record.paths)
    counts = [Counter(map(row_of, record.chosen)) for record in records]
    values = [[_part(count[row], count.total()) for count in counts] for row in rows]
    linear = [_linear_part(record.chosen) for record in records]
    expected = [_linear_part(record.paths) for record in records]
    return Shares([record.step for record in records], rows, values, linear, expected)


def _linear_part(names: Collection[str]) -> float:
    return _part(sum(not is_shortcut(name) for name in names), len(names))


def _part(some: int, whole: int) -> float:
    return some / whole if whole else math.nan


def plot_share(history: History, *, title: str | None = None) -> Figure:
    """Return the shares as bands over the optimizer steps; a choice holds until the next search.

    Where there are shortcuts too, a line marks the share of all projections together, a dashed one their share of the
    candidates.

    Args:
        history: The records of ``rankwise.history(model)``.
        title: Heading above the picture; what it shows stands under it.

    Raises:
        ValueError: The history holds no search.
        ModuleNotFoundError: matplotlib is not installed.
    """
    found = shares(history)
    note = "Of the paths that were on, how many belong to each projection and kind"
    figure = new_figure(7.5, 3.6, title or "Share of the enabled paths", note)
    axes = figure.add_subplot()
    edges = step_edges(found.steps)
    below = [0.0] * len(found.steps)
    colours = row_colours(found.rows)
    for row, values in zip(found.rows, found.values, strict=True):
        above = [low + (0 if math.isnan(share) else share) for low, share in zip(below, values, strict=True)]
        axes.stairs(above, edges, baseline=below, fill=True, color=colours[row], label=row, linewidth=0)
        below = above
    handles, labels = axes.get_legend_handles_labels()
    handles, labels = handles[::-1], labels[::-1]  # as the bands lie
    if 0 < len(BLOCK_KINDS.keys() & set(found.rows)) < len(found.rows):
        line = axes.stairs(
            found.linear, edges, baseline=None, color="black", linewidth=2 if len(found.steps) <= DOTS else 1.2
        )
        dashes = axes.stairs(found.expected, edges, baseline=None, color="black", linewidth=1.2, linestyle=(0, (4, 3)))
        handles, labels = [*handles, line, dashes], [*labels, "all projections", "their share of\nthe candidates"]
    axes.legend(handles, labels, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, 1), xlabel="optimizer step")
    percent_axis(axes)
    plain(axes)
    return figure


def step_edges(steps: list[int]) -> list[float]:
    """Return where each search's choice begins and, last, where the final one may end: after a usual distance."""
    gaps = sorted(later - earlier for earlier, later in pairwise(steps))
    usual = gaps[len(gaps) // 2] if gaps else 1
    return [*map(float, steps), float(steps[-1] + max(usual, 1))]
