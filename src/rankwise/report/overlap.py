"""How much of one choice stays in the next."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from rankwise.report.drawing import GREY, curve, new_figure, percent_axis, plain
from rankwise.report.history import History, searched

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Overlaps(NamedTuple):
    """The share of each choice that the next search kept.

    Args:
        steps: The optimizer step of each search but the first.
        values: The share of the previous choice that was chosen again, NaN where nothing was on before.
        mean: The mean of the values that are numbers.
        budget: The budget where it is a fraction: the overlap that fresh random choices have on average.
    """

    steps: list[int]
    values: list[float]
    mean: float
    budget: float | None


def overlaps(history: History) -> Overlaps:
    """Return what share of the previous choice each search kept: ``|previous & chosen| / |previous|``, by paths.

    Args:
        history: The records of ``rankwise.history(model)`` or the lines of ``search_history.jsonl``.

    Raises:
        ValueError: The history holds fewer than two searches.
    """
    records = searched(history)
    if len(records) < 2:
        raise ValueError("an overlap needs two searches at least: a static run has one (mode='dynamic' has more)")
    choices = [set(record.chosen) for record in records]
    values = [len(before & after) / len(before) if before else math.nan for before, after in pairwise(choices)]
    numbers = [value for value in values if not math.isnan(value)]
    budget = records[-1].budget
    return Overlaps(
        [record.step for record in records[1:]],
        values,
        sum(numbers) / len(numbers) if numbers else math.nan,
        budget if isinstance(budget, float) else None,
    )


def plot_overlap(history: History, *, title: str | None = None) -> Figure:
    """Return the overlap of consecutive choices over the optimizer steps, with the budget as a reference.

    Args:
        history: The records of ``rankwise.history(model)``.
        title: Heading above the picture; what it shows stands under it.

    Raises:
        ValueError: The history holds fewer than two searches.
        ModuleNotFoundError: matplotlib is not installed.
    """
    found = overlaps(history)
    mean = "" if math.isnan(found.mean) else f"; mean {found.mean:.0%}"
    note = f"Share of the previous choice that each search kept{mean}"
    figure = new_figure(7.5, 3.0, title or "Overlap of consecutive choices", note)
    axes = figure.add_subplot()
    curve(axes, found.steps, found.values, "#08519C")
    axes.set(ylim=(-0.03, 1.03), xlabel="optimizer step")
    percent_axis(axes)
    axes.grid(axis="y", color="0.93")
    if found.budget is not None:
        axes.axhline(found.budget, color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
        label = f"budget {found.budget:g}:\nfresh random\nchoices"
        beside = axes.get_yaxis_transform()
        axes.text(1.01, found.budget, label, transform=beside, va="center", fontsize=9, color=GREY)
    plain(axes)
    return figure
