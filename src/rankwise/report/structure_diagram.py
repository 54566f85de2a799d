"""The structure before and after each edit as a diagram: blocks to the right, time downwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rankwise.report.drawing import GREY, new_figure
from rankwise.report.history import History
from rankwise.report.structure import Bar, Structure, structures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW = 0.5  # inches
ROOMY, FITTING = 12, 24  # so many blocks have wide columns, so many narrower ones
FRESH, MERGED, LORA = "#F0D3E4", "#B13A86", "#2F6FB0"
EDITED = "#1A1A1A"
METRICS = {"sfs": "SFS", "mean_sv": "mean singular value"}
HIGH, GAP = 0.62, 0.08  # of a row's height; of a column's width


def plot_structure(history: History, *, title: str | None = None, epochs: Mapping[int, float] | None = None) -> Figure:
    """Return the diagram: a row for the start and one after each edit, a bar for each ``layer`` path over its blocks.

    The numbers in the bars are the scores that the next edit chose by; what it changes is outlined. Injected blocks
    show the projections that their LoRA runs along.

    Args:
        history: The records of ``rankwise.history(model)``.
        title: Heading above the picture; what it shows stands under it.
        epochs: The epoch that each optimizer step belongs to, where it is known.

    Raises:
        ValueError: The history holds no edit.
        ModuleNotFoundError: matplotlib is not installed.
    """
    found = structures(history)
    columns = 1 + max((bar.last for each in found for bar in each.bars), default=0)
    cell = 0.62 if columns <= ROOMY else 0.42 if columns <= FITTING else 0.32
    names = [_name(each, epochs or {}) for each in found]
    left = 0.45 + 0.075 * max(len(line) for name in names for line in name.split("\n"))
    right = 0.95 if any(each.enabled is not None for each in found) else 0.2
    size = (max(left + cell * columns + right, 5.5), 1.55 + ROW * len(found))
    figure = new_figure(*size, title or "Structure before and after each edit", _note(found))
    axes = figure.add_subplot()
    lanes = _lanes(found)
    for row, each in enumerate(found):
        for bar in each.bars:
            _draw(axes, bar, row, lanes[bar.kind], cell, _written(bar, each.metric, cell))
        if each.enabled is not None:
            axes.text(columns + 0.15, row, f"{each.enabled:,}", va="center", fontsize=8, color=GREY)
    if right > 0.5:
        axes.text(columns + 0.15, -0.62, "parameters", va="bottom", fontsize=8, color=GREY)
    axes.set(xlim=(0, columns), ylim=(len(found) - 0.5, -0.5))
    step = 1 if columns <= FITTING else 2
    axes.set_xticks(
        [place + 0.5 for place in range(0, columns, step)], list(map(str, range(0, columns, step))), fontsize=9
    )
    axes.set_yticks(range(len(found)), names, fontsize=8.5)
    axes.xaxis.tick_top()
    axes.set_title("block", fontsize=9, color="0.2", pad=4)
    axes.tick_params(length=0)
    axes.hlines([row + 0.5 for row in range(len(found) - 1)], 0, columns, color="0.92", linewidth=0.8, zorder=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _name(each: Structure, epochs: Mapping[int, float]) -> str:
    if each.title == "start":
        return each.title
    when = f"step {each.step}" + (f", epoch {epochs[each.step]:g}" if each.step in epochs else "")
    return f"{each.title}\n{when}"


def _note(found: list[Structure]) -> str:
    bars = [bar for each in found for bar in each.bars]
    parts = ["A bar is one path from the input of its first block to the output of its last"]
    if any(bar.kind == "linear" for bar in bars):
        parts.append("blue: LoRA on the named projections")
    if any(bar.frozen for bar in bars):
        parts.append("hatched: no longer trained")
    metrics = sorted({METRICS.get(each.metric, each.metric) for each in found if each.metric is not None})
    if metrics:
        parts.append(f"numbers: the {' or '.join(metrics)} that the next edit chose by")
    return "; ".join([*parts, "outlined: what the next edit changes"])


def _lanes(found: list[Structure]) -> dict[str, tuple[float, float]]:
    """Return the middle and the height of bars by kind: one lane, or two where a block has both kinds at once."""
    for each in found:
        blocks = [{place for bar in each.bars if bar.kind == kind for place in range(bar.first, bar.last + 1)}
                  for kind in ("layer", "linear")]  # fmt: skip
        if not blocks[0].isdisjoint(blocks[1]):
            return {"layer": (-0.17, 0.4), "linear": (0.25, 0.34)}
    return {"layer": (0.0, HIGH), "linear": (0.0, HIGH)}


def _written(bar: Bar, metric: str | None, cell: float) -> str:
    if bar.kind == "linear":
        return bar.label
    if bar.score is None:
        return ""
    if metric == "sfs":
        return f"{bar.score:.3f}" if cell > 0.5 or bar.last > bar.first else f"{bar.score:.2f}"
    return f"{bar.score:.2g}"


def _draw(axes: Axes, bar: Bar, row: int, lane: tuple[float, float], cell: float, label: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    middle, high = row + lane[0], lane[1]
    long = bar.last > bar.first
    colour = LORA if bar.kind == "linear" else MERGED if long else FRESH
    width = bar.last - bar.first + 1 - 2 * GAP
    axes.add_patch(
        FancyBboxPatch(
            (bar.first + GAP, middle - high / 2),
            width,
            high,
            boxstyle="round,pad=0,rounding_size=0.08",
            mutation_aspect=cell / ROW,
            facecolor=colour,
            edgecolor=EDITED if bar.edited else "white",
            linewidth=2 if bar.edited else 0,
            hatch="////" if bar.frozen else None,
        )
    )
    ink = "0.2" if colour == FRESH else "white"
    room = width * cell * 72 / max(0.58 * len(label), 1)
    axes.text((bar.first + bar.last + 1) / 2, middle, label, ha="center", va="center", fontsize=min(8, room), color=ink)
