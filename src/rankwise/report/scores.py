"""The scores of the paths over time, by projection and kind."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from rankwise.report.drawing import FAINT, curve, new_figure, plain, row_colours
from rankwise.report.history import History, in_order, row_of, searched

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOG_FROM = 10.0  # largest over smallest score from which a logarithmic scale shows more


class ScoreRanges(NamedTuple):
    """Lowest, median and highest score over the blocks, for each row at each search.

    Args:
        proxy: The score's name.
        steps: The optimizer step of each search that used it.
        rows: Projection names and kinds, in the paper's order.
        low: One list per row: the lowest score at each search, NaN where no path of the row was scored.
        middle: The medians, in the same shape.
        high: The highest scores, in the same shape.
        not_finite: Scores left out because they were infinite or not a number.
    """

    proxy: str
    steps: list[int]
    rows: list[str]
    low: list[list[float]]
    middle: list[list[float]]
    high: list[list[float]]
    not_finite: int


def score_ranges(history: History) -> ScoreRanges:
    """Return the range of scores over the blocks, for each projection and kind at each search.

    Left out: scores that were not finite (None), paths without a score of their own (``unscored``), and searches by
    another proxy than the last one's (the warm-up), whose numbers mean something else.

    Args:
        history: The records of ``rankwise.history(model)`` or the lines of ``search_history.jsonl``.

    Raises:
        ValueError: The history holds no search, or no finite score.
    """
    records = searched(history)
    proxy = records[-1].proxy
    used = [record for record in records if record.proxy == proxy]
    scored = [{name: value for name, value in record.scores.items() if name not in record.unscored} for record in used]
    by_row: dict[str, list[list[float]]] = {}
    for place, scores in enumerate(scored):
        for name, value in scores.items():
            if value is None:
                continue
            row = row_of(name)
            if row not in by_row:  # not setdefault: it would make as many lists for every score
                by_row[row] = [[] for _ in used]
            by_row[row][place].append(value)
    if not by_row:
        raise ValueError(f"no path has a finite {proxy} score of its own, so there are no scores to draw")
    rows = in_order(by_row)
    low, middle, high = (
        [[summary(values) if values else math.nan for values in by_row[row]] for row in rows]
        for summary in (min, median, max)
    )
    not_finite = sum(value is None for scores in scored for value in scores.values())
    return ScoreRanges(proxy, [record.step for record in used], rows, low, middle, high, not_finite)


def plot_scores(history: History, *, title: str | None = None) -> Figure:
    """Return a panel for each projection and kind: the median over the blocks, in a band from lowest to highest.

    All panels have one scale, logarithmic where the scores are positive and far apart; the others' medians are grey.

    Args:
        history: The records of ``rankwise.history(model)``.
        title: Heading above the picture; what it shows stands under it.

    Raises:
        ValueError: The history holds no search, or no finite score.
        ModuleNotFoundError: matplotlib is not installed.
    """
    found = score_ranges(history)
    across = min(len(found.rows), 3 if len(found.rows) <= 6 else 4)
    down = math.ceil(len(found.rows) / across)
    size = (max(2.6 * across + 0.5, 5.5), 1.9 * down + 1.0)
    figure = new_figure(*size, title or "Scores", _note(found, len(searched(history))))
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    colours = row_colours(found.rows)
    for place, axes in enumerate(grid.flat):
        if place < len(found.rows):
            _panel(axes, found, place, colours[found.rows[place]])
        else:
            axes.set_visible(False)
    for axes in grid.flat[len(found.rows) - across : len(found.rows)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
    if is_logarithmic(found):
        grid[0, 0].set_yscale("log")
    figure.supxlabel("optimizer step", fontsize=10)
    figure.supylabel("score", fontsize=10)
    return figure


def _note(found: ScoreRanges, searches: int) -> str:
    note = f"{found.proxy} of each path: median and range over the blocks; grey: the other medians"
    warm_up = searches - len(found.steps)
    if warm_up:
        note += f"; without {warm_up} warm-up search{'es' if warm_up > 1 else ''}"
    if found.not_finite:
        note += f"; scores that were not finite: {found.not_finite}"
    return note


def _panel(axes: Axes, found: ScoreRanges, place: int, colour: str) -> None:
    for other, values in enumerate(found.middle):
        if other != place:
            axes.plot(found.steps, values, color=FAINT, linewidth=1.2)
    axes.fill_between(found.steps, found.low[place], found.high[place], color=colour, alpha=0.25, linewidth=0)
    curve(axes, found.steps, found.middle[place], colour)
    axes.set_title(found.rows[place], loc="left", fontsize=10)
    plain(axes)


def is_logarithmic(found: ScoreRanges) -> bool:
    """Tell whether a logarithmic scale fits: all scores are positive and some are many times as large as others."""
    lowest = min(value for values in found.low for value in values if not math.isnan(value))
    highest = max(value for values in found.high for value in values if not math.isnan(value))
    return lowest > 0 and highest / lowest >= LOG_FROM
