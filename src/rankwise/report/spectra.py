"""The singular values of the paths' ``B A`` over the epochs (arXiv 2503.00572, figure 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rankwise.report.drawing import new_figure
from rankwise.report.history import History, read_lines
from rankwise.rules.edits import Edit, Inject, Merge
from rankwise.rules.records import edits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]
FIELDS = ("epoch", "step", "paths")
DECADES = 4  # what is smaller than the largest value by more is shown as if it were just that small
WIDE, HIGH = (6.5, 0.16, 0.6), (4.0, 0.09, 0.34)  # inches: all columns or rows, and the limits of one
LETTERS: dict[type[Edit], str] = {Merge: "M", Inject: "I"}  # what marks an edit; any other kind is E


class Spectra(NamedTuple):
    """Singular values at the end of each epoch, a mean over the paths.

    Args:
        epochs: The epochs that had come to their end.
        values: One list for each place in the order of size, the largest first: the mean at each epoch, NaN where no
            path has that many.
        paths: How many paths there were at each epoch; merging leaves fewer.
    """

    epochs: list[float]
    values: list[list[float]]
    paths: list[int]


def read_spectra(path: str | Path) -> list[dict[str, Any]]:
    """Read what a run wrote to ``spectra.jsonl``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is no epoch's singular values; the message gives its number.
    """
    return read_lines(path, lambda _: FIELDS, "an epoch's singular values")


def spectra(records: Records, top: int = 50) -> Spectra:
    """Return the ``top`` largest singular values at the end of each epoch, the mean over the paths there were.

    A merged path counts once, as one path.

    Args:
        records: The lines of ``spectra.jsonl``: ``epoch``, ``step`` and ``paths``, values by name, largest first.
        top: How many at most.

    Raises:
        ValueError: There is no epoch, or no path in any.
    """
    by_epoch = [list(record["paths"].values()) for record in records]
    longest = max((len(values) for paths in by_epoch for values in paths), default=0)
    if not longest:
        raise ValueError("no singular values were recorded, so there is nothing to draw; did an epoch come to its end?")
    places = range(min(top, longest))
    means = [
        [_mean([values[place] for values in paths if place < len(values)]) for paths in by_epoch] for place in places
    ]
    return Spectra([record["epoch"] for record in records], means, [len(paths) for paths in by_epoch])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def plot_spectra(records: Records, *, history: History = (), title: str | None = None, top: int = 50) -> Figure:
    """Return the heat map: a column for each epoch, a row for each place in the order of size, colours by logarithm.

    Args:
        records: The lines of ``spectra.jsonl``.
        history: The run's history, whose edits are marked at the epochs they belong to.
        title: Heading above the picture; what it shows stands under it.
        top: How many singular values at most.

    Raises:
        ValueError: There is no epoch, or no path in any.
        ModuleNotFoundError: matplotlib is not installed.
    """
    found = spectra(records, top)
    columns, rows = len(found.epochs), len(found.values)
    width, height = (
        count * min(max(whole / count, least), most) for count, (whole, least, most) in ((columns, WIDE), (rows, HIGH))
    )
    marks = edit_marks(records, history)
    size = (max(1.7 + width, 5.5), max(1.6 + height, 2.6))
    figure = new_figure(*size, title or "Singular values over the epochs", _note(found, marks))
    axes = figure.add_subplot()
    norm = _norm(found)
    edges = [0.5 + place for place in range(columns + 1)]
    shown = [[value if math.isnan(value) else max(value, norm.vmin or 0.0) for value in row] for row in found.values]
    image = axes.pcolormesh(edges, [0.5 + row for row in range(rows + 1)], shown, cmap="magma", norm=norm)
    axes.invert_yaxis()
    axes.set(xlabel="epoch", ylabel="singular value, by size")
    _ticks(axes, found)
    for place, what in marks.items():
        above = axes.get_xaxis_transform()
        axes.text(place + 1, 1.01, what, transform=above, ha="center", va="bottom", fontsize=7.5, color="0.2")
    bar = figure.colorbar(image, ax=axes, pad=0.02, extend="min" if _cut(found, norm) else "neither")
    bar.outline.set_visible(False)
    marked = round_numbers(norm.vmin or 0.0, norm.vmax or 0.0)
    bar.set_ticks(marked, labels=[f"{value:g}" for value in marked], minor=False)
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=9)
    return figure


def edit_marks(records: Records, history: History) -> dict[int, str]:
    """Return a letter for each edit, by the place of the epoch in which, or at whose end, it was made."""
    marks: dict[int, str] = {}
    for record in edits(history):
        place = next((place for place, each in enumerate(records) if record.step <= each["step"]), None)
        if place is not None and record.edits:
            marks[place] = marks.get(place, "") + LETTERS.get(type(record.edits[0]), "E")
    return marks


def _note(found: Spectra, marks: Mapping[int, str]) -> str:
    note = "Mean over the paths of each singular value of B A at the end of each epoch"
    first, last = found.paths[0], found.paths[-1]
    note += f"; {first} paths" if first == last else f"; {first} paths, in the end {last}"
    letters = "".join(marks.values())
    named = {"M": "a merge", "I": "an injection", "E": "another edit"}
    told = [f"{letter}: {what}" for letter, what in named.items() if letter in letters]
    return "; ".join([note, *told, *(["drawn after the edits of that epoch"] if told else [])])


def _norm(found: Spectra) -> LogNorm:
    from matplotlib.colors import LogNorm

    positive = [value for row in found.values for value in row if value > 0]
    highest = max(positive, default=1.0)
    lowest = max(min(positive, default=0.1), highest / 10**DECADES)
    return LogNorm(lowest if lowest < highest else highest / 10, highest)


def round_numbers(lowest: float, highest: float) -> list[float]:
    """Return powers of ten between two numbers, also twice and five times those where there are few."""
    decades = range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1)
    for factors in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        found = [factor * 10.0**decade for decade in decades for factor in factors]
        inside = [value for value in found if lowest * 0.999 <= value <= highest * 1.001]
        if len(inside) >= 3:
            return inside
    return inside or [lowest]


def _cut(found: Spectra, norm: LogNorm) -> bool:
    return any(value < (norm.vmin or 0.0) for row in found.values for value in row)


def _ticks(axes: Axes, found: Spectra) -> None:
    columns, rows = len(found.epochs), len(found.values)
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, columns) if columns / step <= 24 or step >= columns)
    places = [place for place in range(columns) if (place + 1) % step == 0 or step == 1]
    axes.set_xticks([place + 1 for place in places], [f"{found.epochs[place]:g}" for place in places], fontsize=9)
    each = 1 if rows <= 10 else 5 if rows <= 30 else 10
    axes.set_yticks(sorted({1, *range(each, rows + 1, each)}))
    axes.tick_params(length=0, labelsize=9)
    for spine in axes.spines.values():
        spine.set_visible(False)
