"""The heat map as a picture: the right cells, one scale for several, legible, whole on the disk."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from tests.report.histories import collisions, mixed_history, paths, real_history, record

from rankwise.report import compare_frequency, draw_frequency, frequency, plot_frequency


def meshes(figure: Figure) -> list[QuadMesh]:
    """The heat maps of a picture; its scale is drawn in the same way, but in an axes of its own."""
    found = [mesh for axes in figure.axes[:-1] for mesh in axes.collections]
    assert all(isinstance(mesh, QuadMesh) for mesh in found)
    return [mesh for mesh in found if isinstance(mesh, QuadMesh)]


def test_the_cells_hold_the_shares() -> None:
    history = mixed_history()
    (mesh,) = meshes(plot_frequency(history))
    np.testing.assert_array_equal(np.ma.asarray(mesh.get_array()).filled(np.nan), frequency(history).values)
    assert mesh.get_clim() == (0, 1)


def test_the_first_row_is_on_top_and_there_is_no_cut_into_the_first_block() -> None:
    axes = plot_frequency(mixed_history()).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["query", "value", "res1", "res2", "in", "cut"]
    assert axes.yaxis_inverted()
    assert len(axes.texts) == 6 * 6 - 1


def test_several_histories_share_rows_columns_and_colours() -> None:
    shortcuts = [record(["layers.1.in"], paths(2, "in", "cut"))]
    figure = compare_frequency({"combined": mixed_history(4, 3), "separated": shortcuts * 3})
    first, second = meshes(figure)
    assert first.get_clim() == second.get_clim() == (0, 1)
    assert np.ma.asarray(first.get_array()).shape == np.ma.asarray(second.get_array()).shape == (6, 4)
    one, two = figure.axes[:2]
    assert [axes.get_title(loc="left") for axes in (one, two)] == ["combined", "separated"]
    assert one.get_ylim() == two.get_ylim()
    assert len(two.texts) == 3


def test_different_numbers_of_searches_are_said() -> None:
    figure = compare_frequency({"one": mixed_history(2, 3), "two": mixed_history(2, 1)})
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["one (3 searches)", "two (one search)"]


@pytest.mark.parametrize("blocks", [6, 24])
def test_beside_each_other_where_there_is_room_else_below(blocks: int) -> None:
    figure = compare_frequency({name: mixed_history(blocks, 2) for name in ("combined", "separated")})
    first, second = (axes.get_position() for axes in figure.axes[:2])
    assert bool(first.y0 == second.y0) is (blocks == 6)
    assert bool(first.x0 == second.x0) is (blocks == 24)


@pytest.mark.parametrize("blocks", [1, 6, 24, 48])
@pytest.mark.parametrize("runs", [1, 2])
def test_no_word_covers_another(blocks: int, runs: int) -> None:
    names = [f"run {number}" for number in range(runs)]
    assert collisions(compare_frequency({name: mixed_history(blocks, 100) for name in names})) == []


def test_a_real_search_can_be_drawn() -> None:
    (mesh,) = meshes(plot_frequency(real_history()))
    assert np.mean(np.ma.asarray(mesh.get_array())) == 0.5


def test_nothing_to_draw_is_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no history was given"):
        compare_frequency({})
    with pytest.raises(ValueError, match="holds no search"):
        draw_frequency([], tmp_path / "empty.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("blocks", [1, 6, 48])
def test_the_picture_is_a_whole_png(tmp_path: Path, blocks: int) -> None:
    from matplotlib.image import imread

    names = paths(blocks, "query", "value")
    path = draw_frequency([record(names[:1], names)], tmp_path / "deep" / "map.png")
    image = imread(path)
    assert min(image.shape[:2]) > 200
    assert [file.name for file in path.parent.iterdir()] == ["map.png"]


def test_the_svg_is_well_formed_and_holds_the_words(tmp_path: Path) -> None:
    names = paths(2, "query")
    path = draw_frequency([record(names, names)], tmp_path / "map.svg", title="Demo")
    assert ElementTree.parse(path).getroot().tag.endswith("svg")
    assert "Demo" in path.read_text(encoding="utf-8")


def test_another_file_format_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.png, \.svg, not '\.jpg'"):
        draw_frequency([record([], ["layers.0.query"])], tmp_path / "map.jpg")


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'rankwise\[report\]'"):
        draw_frequency([record([], ["layers.0.query"])], tmp_path / "map.png")
