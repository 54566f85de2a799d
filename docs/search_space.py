"""Draw the search space, by ``python docs/search_space.py docs/search_space.svg``.

Two neighbouring post-LN blocks and, as coloured arrows, every kind of path that may run in and between them.
"""

from __future__ import annotations

import sys
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Curve

from rankwise.report.drawing import SHORTCUTS, save_figure

COLOURS = {"linear": "#08519C", **SHORTCUTS}
MEANINGS = {
    "linear": "along a projection, here q and v (LoRA)",
    "res1": "block input to the attention sum",
    "res2": "mid to the feed-forward sum",
    "in": "block input to block output, before its norm",
    "cut": "mid of one block to mid of the next",
    "layer": "block input to block output, after its norm (LoR2C)",
}
INK, FRAME, BOX, STREAM = "0.15", "#F3F3F1", "white", "0.45"

# Where things are along a block, from its input to its output, which is the next one's input.
SUM_1, NORM_1, MID, SUM_2, NORM_2, OUTPUT = 2.25, 3.38, 4.2, 5.85, 6.98, 7.95
CUT_END, IN_END = 2.7, 6.32  # just before the norms
FIRST, SECOND = 0.0, OUTPUT  # the two blocks
LANES = {"res1": 0.72, "res2": 0.72, "in": 1.42, "layer": 2.02, "span": 2.72, "cut": -2.22}


def box(axes: Axes, left: float, bottom: float, right: float, top: float, text: str, **style: Any) -> None:
    """Draw a box with round corners and a word in it."""
    look: dict[str, Any] = {"facecolor": BOX, "edgecolor": STREAM, "linewidth": 1.0, "zorder": 3, **style}
    shape = f"round,pad=0,rounding_size={min(0.1, (top - bottom) / 2)}"
    axes.add_patch(FancyBboxPatch((left, bottom), right - left, top - bottom, boxstyle=shape, **look))
    axes.text((left + right) / 2, (bottom + top) / 2, text, ha="center", va="center", fontsize=10, color=INK, zorder=5)


def arrow(
    axes: Axes, points: list[tuple[float, float]], colour: str, *, width: float, head: bool = True, **style: Any
) -> None:
    """Draw an arrow through the points, with round corners."""
    vertices, codes = [points[0]], [Curve.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        for end in (before, after):
            length = abs(end[0] - corner[0]) + abs(end[1] - corner[1])
            part = min(0.22 / length, 0.5)
            vertices.append((corner[0] + part * (end[0] - corner[0]), corner[1] + part * (end[1] - corner[1])))
        vertices.insert(-1, corner)
        codes += [Curve.LINETO, Curve.CURVE3, Curve.CURVE3]
    curve = Curve([*vertices, points[-1]], [*codes, Curve.LINETO])
    form = f"-|>,head_length={1.6 + 1.4 * width},head_width={0.8 + 0.8 * width}" if head else "-"
    options: dict[str, Any] = {
        "color": colour,
        "linewidth": width,
        "zorder": 4,
        "capstyle": "butt",
        "joinstyle": "round",
        **style,
    }
    axes.add_patch(FancyArrowPatch(path=curve, arrowstyle=form, shrinkA=0, shrinkB=0, **options))


def plus(axes: Axes, x: float) -> None:
    """Draw a sum on the residual stream."""
    axes.add_patch(Circle((x, 0), 0.17, facecolor=BOX, edgecolor=STREAM, linewidth=1.2, zorder=5))
    for dx, dy in ((0.1, 0), (0, 0.1)):
        axes.add_line(Line2D([x - dx, x + dx], [-dy, dy], color=INK, linewidth=1.2, zorder=6))


def block(axes: Axes, x: float, name: str) -> None:
    """Draw one block: the residual stream through both sums and norms, and the two branches below it."""
    box(axes, x + 0.38, -2.95, x + OUTPUT - 0.38, 1.02, "", facecolor=FRAME, edgecolor="none", zorder=1)
    axes.text(x + OUTPUT - 0.55, -2.75, name, ha="right", fontsize=11, color="0.35")
    grey: dict[str, Any] = {"width": 1.4, "zorder": 2}
    arrow(axes, [(x, 0), (x + OUTPUT - 0.24, 0)], STREAM, **grey)
    for start, end, left in ((0.78, SUM_1, 0.58), (MID + 0.68, SUM_2, MID + 0.38)):
        arrow(axes, [(x + start, 0), (x + start, -0.62)], STREAM, **grey)
        arrow(axes, [(x + end, -0.62), (x + end, -0.15)], STREAM, **grey)
        words = "" if left < 1 else "feed-\nforward"
        box(axes, x + left, -1.85, x + end + 0.2, -0.62, words)
    axes.text(x + 1.515, -0.87, "attention", ha="center", va="center", fontsize=10, color=INK, zorder=5)
    for place, letter in ((1.08, "q"), (1.95, "v")):
        projection(axes, x + place, letter)
    for place in (SUM_1, SUM_2):
        plus(axes, x + place)
    for place in (NORM_1, NORM_2):
        box(axes, x + place - 0.4, -0.22, x + place + 0.4, 0.22, "norm")
    axes.add_patch(Circle((x + MID, 0), 0.075, color=INK, zorder=6))
    axes.text(x + MID + 0.06, -0.3, "mid", fontsize=9, color=INK, style="italic", zorder=6)


def projection(axes: Axes, x: float, letter: str) -> None:
    """Draw a projection in the attention, with its linear path beside it."""
    box(axes, x - 0.17, -1.42, x + 0.17, -1.08, letter, zorder=4)
    colour = COLOURS["linear"]
    arrow(axes, [(x - 0.3, -1.2), (x - 0.3, -1.66), (x + 0.3, -1.66), (x + 0.3, -1.16)], colour, width=1.9, zorder=5)


def paths(axes: Axes) -> None:
    """Draw the paths of the second block, the one between both, and one across both."""
    h, previous, out = SECOND, FIRST, SECOND + OUTPUT
    routes = {
        "res1": (h + 0.17, h + SUM_1, 0.17),
        "res2": (h + MID, h + SUM_2, 0.17),
        "in": (h, h + IN_END, 0.02),
        "layer": (h - 0.17, out - 0.15, 0.07),
        "span": (previous, out + 0.15, 0.07),
        "cut": (previous + MID, h + CUT_END, -0.02),
    }
    for name, (start, end, stop) in routes.items():
        lane, kind = LANES[name], "layer" if name == "span" else name
        points = [(start, 0.0), (start, lane), (end, lane), (end, stop)]
        if name == "span":  # dashed but for its head
            arrow(axes, [*points[:-1], (end, 0.5)], COLOURS[kind], width=2.3, head=False, linestyle=(0, (4, 1.6)))
            points = [(end, 0.5), (end, stop)]
        arrow(axes, points, COLOURS[kind], width=2.3)
        middle = (start + end) / 2 - (1.2 if name == "cut" else 0)
        words = "layer, across a span" if name == "span" else name
        ground = FRAME if name in ("res1", "res2", "cut") else "white"
        label = {"facecolor": ground, "edgecolor": "none", "pad": 1.5}
        axes.text(
            middle,
            lane,
            words,
            ha="center",
            va="center",
            fontsize=11,
            fontweight="bold",
            color=INK,
            bbox=label,
            zorder=7,
        )


def legend(axes: Axes) -> None:
    """Say below the blocks what each colour means."""
    handles = [Line2D([], [], color=colour, linewidth=2.6) for colour in COLOURS.values()]
    words = [f"$\\bf{{{kind}}}$  {MEANINGS[kind]}" for kind in COLOURS]
    look = {"frameon": False, "fontsize": 10, "columnspacing": 3.0, "handlelength": 1.8}
    axes.legend(handles, words, loc="lower center", bbox_to_anchor=(0.5, 0.06), ncols=2, **look)
    note = (
        "Drawn for post-norm blocks. In pre-norm ones the norms lie inside the branches, and in and layer are one path."
    )
    axes.text(0.5, 0.03, note, transform=axes.transAxes, ha="center", va="center", fontsize=9, color="0.35")


def search_space() -> Figure:
    """Return the whole picture."""
    figure = Figure(figsize=(10, 4.85))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.55, 2 * OUTPUT + 0.55), ylim=(-4.85, 3.05))
    axes.set_aspect("equal")
    axes.axis("off")
    block(axes, FIRST, r"block $\ell-1$")
    block(axes, SECOND, r"block $\ell$")
    for x, words in ((FIRST, "block\ninput"), (SECOND, ""), (SECOND + OUTPUT, "block\noutput")):
        box(axes, x - 0.25, -0.07, x + 0.25, 0.07, "", facecolor=INK, edgecolor=INK, zorder=6)
        axes.text(x, -0.25, words, ha="center", va="top", fontsize=9, color=INK, style="italic")
    paths(axes)
    legend(axes)
    return figure


if __name__ == "__main__":
    save_figure(search_space(), sys.argv[1])
