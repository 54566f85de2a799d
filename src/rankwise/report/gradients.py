"""How large the gradients of LoR2C are beside those of LoRA, by block and epoch (arXiv 2503.00572, figure 7)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rankwise.report.drawing import new_figure
from rankwise.report.history import read_lines

if TYPE_CHECKING:
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]
FIELDS = ("epoch", "step", "steps", "blocks")
MOST_EPOCHS = 12  # bars in depth that can be told apart; more epochs are averaged in groups
LIGHT = 0.6  # of the scale: from there on the colours are light, and ink is dark
PANELS = ((False, "as trained"), (True, "at equal norm of B"))


class GradientRatio(NamedTuple):
    """Mean absolute gradient of the ``layer`` paths over that of the ``linear`` ones.

    Args:
        blocks: The blocks, lowest first.
        epochs: The epochs, or the last one of each group of epochs.
        values: One list for each block: the ratio in each epoch, NaN where a block had only one of the two.
        correlation: Spearman's rank correlation of a block's mean ratio with its number: below 0, the ratio grows
            towards lower blocks. NaN for fewer than three blocks.
    """

    blocks: list[int]
    epochs: list[float]
    values: list[list[float]]
    correlation: float


def read_gradients(path: str | Path) -> list[dict[str, Any]]:
    """Read what a run wrote to ``gradients.jsonl``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is no epoch's gradients; the message gives its number.
    """
    return read_lines(path, lambda _: FIELDS, "an epoch's gradients")


def gradient_ratio(records: Records, *, equal_norm: bool = False) -> GradientRatio:
    """Return the ratio ``mean |dL/d(A, B)| of the layer path / mean |dL/d(A, B)| of LoRA``, by block and epoch.

    The gradient ``dL/dA = s B^T (dL/dy) x^T`` grows with ``B``, ``dL/dB = s (dL/dy) (A x)^T`` does not. A path with
    the larger ``B`` therefore has the larger gradient whatever its place; ``equal_norm`` takes that out.

    Args:
        records: The lines of ``gradients.jsonl``.
        equal_norm: Scale the gradient of LoR2C's ``A`` to what it would be if its ``B`` had the Frobenius norm that
            LoRA's has in the same block; NaN where its ``B`` was zero.

    Raises:
        ValueError: No epoch has a block with both.
    """
    ratios = [
        {int(block): _ratio(kinds, equal_norm) for block, kinds in record["blocks"].items() if len(kinds) == 2}
        for record in records
    ]
    blocks = sorted({block for each in ratios for block in each})
    if not blocks:
        raise ValueError("no block has gradients of both LoR2C and LoRA, so there is no ratio to draw")
    values = [[each.get(block, math.nan) for each in ratios] for block in blocks]
    return GradientRatio(blocks, [record["epoch"] for record in records], values, _spearman([_mean(v) for v in values]))


def _ratio(kinds: Mapping[str, Mapping[str, float]], equal_norm: bool) -> float:
    layer, linear = kinds["layer"], kinds["linear"]
    scale = 1.0
    if equal_norm:
        scale = linear["norm_B"] / layer["norm_B"] if layer["norm_B"] else math.nan
    above, below = _gradient(layer, scale), _gradient(linear)
    return above / below if below and math.isfinite(above) else math.nan


def _gradient(kind: Mapping[str, float], scale: float = 1.0) -> float:
    total = scale * kind["grad_A"] * kind["size_A"] + kind["grad_B"] * kind["size_B"]
    return total / (kind["size_A"] + kind["size_B"])


def _mean(values: Sequence[float]) -> float:
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def _spearman(values: Sequence[float]) -> float:
    """Return the rank correlation of values with their places; NaN for fewer than three, or equal ones."""
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 3 or len(set(known)) == 1:  # the latter has none, and scipy would warn
        return math.nan
    from scipy.stats import spearmanr  # late: slow to import, and most reports have no gradients

    return float(spearmanr(range(len(known)), known).statistic)


def grouped(found: GradientRatio, most: int = MOST_EPOCHS) -> GradientRatio:
    """Average neighbouring epochs until there are at most ``most`` groups, each named by its last epoch."""
    size = math.ceil(len(found.epochs) / most)
    starts = range(0, len(found.epochs), size)
    values = [[_mean(row[start : start + size]) for start in starts] for row in found.values]
    epochs = [found.epochs[min(start + size, len(found.epochs)) - 1] for start in starts]
    return GradientRatio(found.blocks, epochs, values, found.correlation)


def plot_gradient_ratio(records: Records, *, title: str | None = None, flat: bool = False) -> Figure:
    """Return the ratio over blocks and epochs: as trained, and at equal norm of ``B``.

    Args:
        records: The lines of ``gradients.jsonl``.
        title: Heading above the picture; what it shows stands under it.
        flat: A map with the numbers written in, where no bar hides another; else bars, as in the paper's figure.

    Raises:
        ValueError: No epoch has a block with both LoR2C and LoRA.
        ModuleNotFoundError: matplotlib is not installed.
    """
    found = [gradient_ratio(records, equal_norm=equal) for equal, _ in PANELS]
    shown = [grouped(each) for each in found]
    size = math.ceil(len(found[0].epochs) / MOST_EPOCHS)
    note = "Mean absolute gradient of LoR2C's tensors over LoRA's"
    note += f", averaged over groups of {size} epochs" if size > 1 else ""
    note += "; at equal norm of B: A's gradient scaled to the norm of LoRA's B"
    note += "; below 0, the rank correlation says that the ratio grows towards lower blocks"
    figure = new_figure(11.0, 5.0, title or "Gradients of LoR2C : LoRA", note)
    norm = _norm(shown)
    for place, (each, (_, name)) in enumerate(zip(shown, PANELS, strict=True)):
        axes: Any = figure.add_subplot(1, 2, place + 1, projection=None if flat else "3d")
        (_map if flat else _bars)(axes, each, norm)
        told = "" if math.isnan(each.correlation) else f": rank correlation with the block {each.correlation:+.2f}"
        axes.set_title(f"{name}{told}", fontsize=10, **({} if flat else {"y": 1.0}))
    return figure


def _norm(shown: Sequence[GradientRatio]) -> Normalize:
    from matplotlib.colors import Normalize

    numbers = [value for each in shown for row in each.values for value in row if not math.isnan(value)]
    return Normalize(0.0, max(numbers, default=1.0))


def _bars(axes: Any, found: GradientRatio, norm: Normalize) -> None:
    """Draw a bar for each number, blocks to the right, epochs into the depth, the first one in front."""
    from matplotlib import colormaps

    columns, rows = len(found.blocks), len(found.epochs)
    cells = [
        (x, y, value)
        for y in range(rows)
        for x in range(columns)
        if not math.isnan(value := found.values[x][y])
    ]  # fmt: skip
    if cells:
        xs, ys, heights = (list(values) for values in zip(*cells, strict=True))
        colours = [colormaps["viridis"](norm(height)) for height in heights]
        axes.bar3d([x - 0.4 for x in xs], [y - 0.3 for y in ys], 0, 0.8, 0.6, heights, color=colours, shade=True)
    axes.view_init(elev=33, azim=-60)
    axes.set_box_aspect((1.5, 1.1, 0.8), zoom=1.02)
    axes.set_zlim(0, norm.vmax)
    axes.tick_params(axis="z", labelsize=8)
    _name_sides(axes, found)


def _map(axes: Any, found: GradientRatio, norm: Normalize) -> None:
    """Draw a cell for each number with the number in it, the first epoch at the top; what is unknown stays empty."""
    columns, rows = len(found.blocks), len(found.epochs)
    shown = [[found.values[x][y] for x in range(columns)] for y in range(rows)]
    axes.imshow(shown, cmap="viridis", norm=norm, aspect="auto")
    size = min(9.0, 80 / columns)
    for y, row in enumerate(shown):
        for x, value in enumerate(row):
            if not math.isnan(value):
                ink = "white" if norm(value) < LIGHT else "black"
                axes.text(x, y, f"{value:.3g}", ha="center", va="center", fontsize=size, color=ink)
    _name_sides(axes, found)


def _name_sides(axes: Any, found: GradientRatio) -> None:
    each = 1 + (len(found.blocks) - 1) // 12
    axes.set_xticks(range(0, len(found.blocks), each), [str(block) for block in found.blocks[::each]], fontsize=8)
    step = 1 + (len(found.epochs) - 1) // 8
    axes.set_yticks(range(0, len(found.epochs), step), [f"{epoch:g}" for epoch in found.epochs[::step]], fontsize=8)
    axes.set_xlabel("block", fontsize=9)
    axes.set_ylabel("epoch", fontsize=9)
