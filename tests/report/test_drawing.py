"""What the pictures share: headings that fit, colours that differ, files that are the same each time."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.colors import to_rgb
from tests.report.histories import collisions, mixed_history

from rankwise.report import plot_frequency, save_figure
from rankwise.report.drawing import SHORTCUTS, new_figure, row_colours
from rankwise.rules.kinds import BLOCK_KINDS

Numbers = npt.NDArray[np.float64]

# What is left of a colour (linear RGB) without one sort of cones: Machado, Oliveira and Fernandes, 2009.
SIGHTS = {
    "all cones": np.eye(3),
    "no long": np.array([[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]),
    "no medium": np.array([[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]),
    "no short": np.array([[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]]),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> Numbers:
    """Linear RGB of a colour."""
    values = np.array(to_rgb(colour))
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: Numbers) -> Numbers:
    """Lightness and two hues (CIE Lab), where distances are differences that one sees; 2 is just visible."""
    xyz = TO_XYZ @ rgb / TO_XYZ.sum(axis=1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_every_kind_has_a_colour() -> None:
    assert list(SHORTCUTS) == list(BLOCK_KINDS)


@pytest.mark.parametrize("sight", SIGHTS)
def test_rows_can_be_told_apart_by_everyone(sight: str) -> None:
    colours = row_colours(["query", "value", *BLOCK_KINDS])
    seen = {row: lab(np.clip(SIGHTS[sight] @ linear(colour), 0, 1)) for row, colour in colours.items()}
    distances = {f"{a} {b}": float(np.linalg.norm(seen[a] - seen[b])) for a, b in combinations(seen, 2)}
    assert {pair: far for pair, far in distances.items() if far < 14} == {}


def test_projections_go_from_dark_to_pale() -> None:
    colours = row_colours(["q", "v", "k", "o", "up", "down", "gate", "in"])
    lightness = [float(lab(linear(colour))[0]) for row, colour in colours.items() if row != "in"]
    assert lightness == sorted(lightness)
    assert len(set(colours.values())) == len(colours) == 8
    assert colours["in"] == SHORTCUTS["in"]


@pytest.mark.parametrize("width", [5.5, 12.0])
@pytest.mark.parametrize("words", [1, 12, 40])
def test_a_heading_wraps_and_leaves_the_picture_free(width: float, words: int) -> None:
    figure = new_figure(width, 5.0, "heading " * words, "note " * words)
    figure.add_subplot().set_title("panel", loc="left")
    assert collisions(figure) == []


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_same_picture_is_the_same_file(tmp_path: Path, ending: str) -> None:
    files = [save_figure(plot_frequency(mixed_history(2, 2)), tmp_path / f"{name}.{ending}") for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_another_ending_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'.*map' must end in one of \.png, \.svg, not ''"):
        save_figure(plot_frequency(mixed_history(2, 2)), tmp_path / "map")
    assert list(tmp_path.iterdir()) == []
