"""What the pictures have in common: a figure, its heading, the colours of the rows, and the way to the disk."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.files import write_atomic
from rankwise.rules.kinds import BLOCK_KINDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
GREY, FAINT = "0.35", "0.85"
DOTS = 30  # more searches than that, and their marks would cover a line
# Told apart by lightness too, within a pair and between neighbours: greens add to a residual sum, warm colours cross a
# block, blues (drawn from the heat map's scale) are projections.
SHORTCUTS = {"res1": "#15703F", "res2": "#A8D08D", "in": "#F0A830", "cut": "#C9500F", "layer": "#B13A86"}
LINEAR_SCALE = (0.85, 0.45)  # the part of matplotlib's Blues that projections share out


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


def new_figure(width: float, height: float, title: str, note: str) -> Figure:
    """Return an empty figure of that size in inches, with a heading and a grey line under it, both wrapped to fit."""
    figure = figure_class()(figsize=(width, height), layout="constrained")
    headline = textwrap.wrap(title, max(int(width / 0.115), 20))
    under = textwrap.wrap(note, max(int(width / 0.085), 20))
    # The empty lines make the layout leave room for the note, whose place it does not manage.
    blank = "\n" * -(-len(under) * 12 // 14)
    left = 0.1 / width
    figure.suptitle("\n".join(headline) + blank, x=left, ha="left", fontsize=12, fontweight="bold", linespacing=1.2)
    top = 1 - (0.1 + 0.205 * len(headline)) / height
    figure.text(left, top, "\n".join(under), ha="left", va="top", fontsize=9, color=GREY)
    return figure


def row_colours(rows: Sequence[str]) -> dict[str, str]:
    """Return a colour for each row: blues for projections, the first one darkest, and a fixed one for each kind."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    linear = [row for row in rows if row not in BLOCK_KINDS]
    start, end = LINEAR_SCALE
    step = (end - start) / max(len(linear) - 1, 1)
    blues = {row: to_hex(colormaps["Blues"](start + step * place)) for place, row in enumerate(linear)}
    return {row: blues[row] if row in blues else SHORTCUTS[row] for row in rows}


def plain(axes: Axes) -> None:
    """Take away what carries nothing: the frame's upper and right side, strong ticks."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("0.6")
    axes.tick_params(which="both", color="0.6", labelcolor="0.2", labelsize=9)


def curve(axes: Axes, steps: Sequence[int], values: Sequence[float], colour: str) -> None:
    """Draw a line, with dots where they are few."""
    axes.plot(steps, values, color=colour, linewidth=1.9, marker="o", markersize=3.5 if len(steps) <= DOTS else 0)


def percent_axis(axes: Axes) -> None:
    """Label the vertical axis with shares from 0% to 100%."""
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure in one move, the same bytes each time, and return its path.

    Raises:
        ValueError: The file's name ends neither in ``.png`` nor in ``.svg``.
    """
    target = check_name(path)
    from matplotlib import rc_context

    dated = {"Date": None} if target.suffix == ".svg" else {}
    with rc_context({"svg.hashsalt": "rankwise"}):
        write_atomic(
            target, lambda file: figure.savefig(file, format=target.suffix[1:], dpi=150, metadata=dated or None)
        )
    return target


def check_name(path: str | Path) -> Path:
    """Return the path of a picture, or raise a ``ValueError`` that says how its name must end."""
    target = Path(path)
    if target.suffix[1:] not in FORMATS:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise ValueError(f"path={str(path)!r} must end in one of {endings}, not {target.suffix!r}")
    return target
