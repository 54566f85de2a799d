"""A rank plan as a picture: the rank of every path by block, beside what the ranks are predicted to bring."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from rankwise.report.drawing import check_name, new_figure, plain, save_figure
from rankwise.report.history import OUTSIDE, cells, in_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOUR_MAP = "Blues"
MOST_COLUMNS = 24  # more blocks than that, and the cells get too narrow for a number
DARK = 0.55  # cells above this share of the largest rank take white ink
HALF = 0.5


class Planned(Protocol):
    """What a picture needs of a plan."""

    @property
    def ranks(self) -> Mapping[str, int]:
        """The rank of every candidate."""
        ...

    @property
    def budget(self) -> int:
        """The limit in parameters."""
        ...

    @property
    def spent(self) -> int:
        """The parameters of the plan."""
        ...

    @property
    def gain(self) -> float:
        """The predicted decrease of the loss."""
        ...

    @property
    def step_share(self) -> float | None:
        """What a training step takes, in steps of uniform LoRA, if that was limited."""
        ...

    @property
    def depths(self) -> Sequence[tuple[int, float, float]]:
        """Of each depth the lowest block, the share of a step and the predicted gain, if time was limited."""
        ...

    @property
    def unspent(self) -> int:
        """What is left of the budget."""
        ...

    @property
    def unspent_because(self) -> str:
        """Why it is left."""
        ...

    @property
    def overlap(self) -> float | None:
        """How much of their cost the choices on two halves of the batches share."""
        ...

    @property
    def kept(self) -> float | None:
        """How much of its gain a half keeps with the other's ranks."""
        ...

    @property
    def seconds(self) -> float:
        """How long planning took."""
        ...

    @property
    def passes(self) -> int:
        """The forward and backward passes that it took."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before trusting it."""
        ...

    def curve(self) -> list[tuple[int, float]]:
        """Return (parameters, predicted gain) after each pick."""
        ...

    def parameters_for(self, share: float = HALF) -> int:
        """Return how many parameters have that share of the gain."""
        ...


class RankTable(NamedTuple):
    """Ranks by row and block.

    Args:
        rows: Projections and kinds.
        columns: Block numbers, ``OUTSIDE`` for paths in no block.
        values: One list per row; NaN where there is no such candidate.
    """

    rows: list[str]
    columns: list[int]
    values: list[list[float]]


def rank_table(ranks: Mapping[str, int]) -> RankTable:
    """Return the ranks of a plan as a table.

    Args:
        ranks: The rank of every candidate by its name.
    """
    placed = {cell: float(rank) for name, rank in ranks.items() for cell in cells(name)}
    rows = in_order(row for row, _ in placed)
    columns = sorted({column for _, column in placed}, key=lambda column: (column == OUTSIDE, column))
    return RankTable(rows, columns, [[placed.get((row, column), math.nan) for column in columns] for row in rows])


def summary(plan: Planned) -> str:
    """Return one line on what a plan spends and what it is predicted to bring."""
    time = "" if plan.step_share is None else f"; a step takes {plan.step_share:.0%} of uniform LoRA's time"
    return (
        f"{plan.spent:,} of {plan.budget:,} parameters; predicted gain {plan.gain:.3g}, half of it with "
        f"{plan.parameters_for(HALF):,}{time}"
    )


def details(plan: Planned) -> list[str]:
    """Return short lines on what is left and why, how far two halves of the batches agree, and what planning took."""
    lines = [f"{plan.unspent:,} parameters left: {plan.unspent_because}"] if plan.unspent else []
    if plan.overlap is not None and plan.kept is not None:
        lines.append(f"two halves of the batches: overlap {plan.overlap:.2f}, {plan.kept:.0%} of the gain kept")
    if plan.seconds:
        lines.append(f"planned in {plan.seconds:.1f} s with {plan.passes} passes")
    return lines


class DepthTable(NamedTuple):
    """What other depths of the backward pass would bring, as texts.

    Args:
        heads: The columns.
        rows: A row for each depth.
        chosen: The number of the row that the plan is of.
    """

    heads: tuple[str, str, str]
    rows: list[tuple[str, str, str]]
    chosen: int


def depth_table(plan: Planned) -> DepthTable | None:
    """Return what other depths would bring, the shallowest first; None where time was not limited."""
    if not plan.depths:
        return None
    gains = [gain for _, _, gain in plan.depths]
    return DepthTable(
        ("backward pass down to block", "of uniform LoRA's time", "predicted gain"),
        [(str(block), f"{share:.0%}", f"{gain:.3g}") for block, share, gain in plan.depths],
        gains.index(max(gains)),
    )


def draw_ranks(plan: Planned, path: str | Path, *, title: str | None = None) -> Path:
    """Write a plan as a picture and return its path.

    Args:
        plan: A ``rankwise.RankPlan``.
        path: A file name that ends in ``.png`` or ``.svg``.
        title: Heading above the picture.

    Raises:
        ValueError: The name ends otherwise.
        ModuleNotFoundError: matplotlib is not installed.
    """
    target = check_name(path)
    return save_figure(plot_ranks(plan, title=title), target)


def plot_ranks(plan: Planned, *, title: str | None = None) -> Figure:
    """Return a heat map of the ranks beside the curve of predicted gain over parameters.

    Args:
        plan: A ``rankwise.RankPlan``.
        title: Heading above the picture.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    table = rank_table(plan.ranks)
    map_width = 1.0 + 0.09 * max(map(len, table.rows)) + 0.42 * len(table.columns)
    height = max(1.3 + 0.4 * len(table.rows), 3.8)
    count = len(plan.warnings)
    asked = [f"{count} warning{'s' if count > 1 else ''}, see plan.warnings"] if count else []
    note = "; ".join([summary(plan), *details(plan), *asked])
    figure = new_figure(map_width + 4.2, height, title or "Where the ranks go", note)
    ranks, gain = figure.subplots(1, 2, width_ratios=[map_width, 4.0])
    _map(ranks, table)
    _curve(gain, plan)
    return figure


def _map(axes: Axes, table: RankTable) -> None:
    most = max((rank for row in table.values for rank in row if not math.isnan(rank)), default=1.0) or 1.0
    axes.pcolormesh(table.values, cmap=COLOUR_MAP, vmin=0, vmax=most, edgecolors="white", linewidth=2)
    axes.invert_yaxis()
    axes.set_title("rank", loc="left", fontsize=11)
    labels = ["outside" if column == OUTSIDE else str(column) for column in table.columns]
    step = 1 + len(labels) // (2 * MOST_COLUMNS)
    axes.set_xticks([place + 0.5 for place in range(0, len(labels), step)], labels[::step], fontsize=9)
    axes.set_yticks([place + 0.5 for place in range(len(table.rows))], table.rows, fontsize=10)
    axes.set_xlabel("block", fontsize=10)
    axes.tick_params(length=0)
    axes.set_facecolor("0.92")  # where there is no such path
    for spine in axes.spines.values():
        spine.set_visible(False)
    for y, row in enumerate(table.values if len(labels) <= MOST_COLUMNS else []):
        for x, rank in enumerate(row):
            if rank > 0:
                ink = "white" if rank > DARK * most else "0.2"
                axes.text(x + 0.5, y + 0.5, f"{rank:.0f}", ha="center", va="center", fontsize=9, color=ink)


def _curve(axes: Axes, plan: Planned) -> None:
    points = [(0, 0.0), *plan.curve()]
    axes.plot([cost for cost, _ in points], [gain for _, gain in points], color="#2171B5", linewidth=1.9)
    half = plan.parameters_for(HALF)
    axes.plot([half, half, 0], [0, HALF * plan.gain, HALF * plan.gain], color="0.6", linewidth=0.9, linestyle=":")
    axes.set_title("predicted gain", loc="left", fontsize=11)
    axes.set_xlabel("parameters", fontsize=10)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    plain(axes)


def html_of(plan: Planned) -> str:
    """Return a plan as a table for a notebook: darker cells have a higher rank."""
    table = rank_table(plan.ranks)
    most = max((rank for row in table.values for rank in row if not math.isnan(rank)), default=1.0) or 1.0
    heads = "".join(f"<th>{'outside' if column == OUTSIDE else column}</th>" for column in table.columns)
    rows = "".join(
        f"<tr><th>{html.escape(row)}</th>{''.join(_html_cell(rank, most) for rank in ranks)}</tr>"
        for row, ranks in zip(table.rows, table.values, strict=True)
    )
    said = "".join(f"<p>{html.escape(line)}</p>" for line in (*details(plan), *plan.warnings))
    ranks = f"<p>{html.escape(summary(plan))}</p><table><tr><th></th>{heads}</tr>{rows}</table>"
    return f"{ranks}{_html_depths(plan)}{said}"


def _html_depths(plan: Planned) -> str:
    table = depth_table(plan)
    if table is None:
        return ""
    heads = "".join(f"<th>{head}</th>" for head in table.heads)
    rows = ""
    for number, row in enumerate(table.rows):
        cell = "th" if number == table.chosen else "td"
        rows += f"<tr>{''.join(f'<{cell}>{text}</{cell}>' for text in row)}</tr>"
    return f"<table><tr>{heads}</tr>{rows}</table>"


def _html_cell(rank: float, most: float) -> str:
    if math.isnan(rank):
        return "<td></td>"
    depth = rank / most
    ink = "#fff" if depth > DARK else "#333"
    return f"<td style='text-align:center;color:{ink};background:rgba(8,81,156,{depth:.2f})'>{rank:.0f}</td>"
