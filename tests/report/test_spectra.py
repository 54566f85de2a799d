"""Singular values over the epochs: means of the right ones, on a logarithmic scale, with the edits marked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from tests.report.edits import Line, edited_history, edits, epochs_of_spectra
from tests.report.histories import collisions

from rankwise import Disable
from rankwise.report import plot_spectra, read_spectra, spectra
from rankwise.report.spectra import edit_marks, round_numbers


def epoch(number: float, *paths: list[float]) -> Line:
    return {"epoch": number, "step": int(10 * number), "paths": {f"layers.{n}.layer": p for n, p in enumerate(paths)}}


def test_means_over_the_paths_there_are() -> None:
    found = spectra([epoch(1, [4, 2], [2, 1]), epoch(2, [8, 2, 1], [4, 1]), epoch(2.5)])
    assert found.epochs == [1, 2, 2.5]
    assert found.paths == [2, 2, 0]
    assert found.values[0][:2] == [3, 6]
    assert found.values[1][:2] == [1.5, 1.5]
    assert math.isnan(found.values[2][0])
    assert found.values[2][1] == 1  # only one path has a third
    assert all(math.isnan(row[2]) for row in found.values)


def test_only_the_largest() -> None:
    assert len(spectra(epochs_of_spectra(r=8), top=3).values) == 3
    assert spectra(epochs_of_spectra(r=8), top=3).values == spectra(epochs_of_spectra(r=8)).values[:3]


@pytest.mark.parametrize("records", [[], [epoch(1)]])
def test_nothing_is_refused(records: list[Line]) -> None:
    with pytest.raises(ValueError, match="no singular values were recorded"):
        spectra(records)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spectra.jsonl").write_text('{"epoch": 1, "step": 3}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 1 is not an epoch's singular values of rankwise"):
        read_spectra(tmp_path / "spectra.jsonl")


def test_an_edit_is_marked_at_the_epoch_in_which_it_was_made() -> None:
    records = epochs_of_spectra(4)  # epochs end after steps 10, 20, 30, 40
    assert edit_marks(records, edited_history()) == {0: "MI", 1: "M"}  # the last one was skipped
    assert edit_marks(records[:1], edited_history()) == {0: "MI"}
    by_hand = [edits([Disable("x")], [], [], step=11)]
    assert edit_marks(records, by_hand) == {1: "E"}


def test_the_colours_are_logarithms_of_the_means() -> None:
    records = [epoch(1, [1.0, 0.0]), epoch(2, [100.0, 1e-7])]
    (mesh,) = (each for each in plot_spectra(records).axes[0].collections if isinstance(each, QuadMesh))
    assert isinstance(mesh.norm, LogNorm)
    assert (mesh.norm.vmin, mesh.norm.vmax) == pytest.approx((0.01, 100))
    shown: Any = np.ma.asarray(mesh.get_array()).filled(np.nan)
    np.testing.assert_allclose(shown, np.array([[1.0, 100.0], [0.01, 0.01]]))


@pytest.mark.parametrize(
    ("lowest", "highest", "marked"),
    [
        (0.01, 100, [0.01, 0.1, 1, 10, 100]),
        (0.03, 4, [0.05, 0.1, 0.2, 0.5, 1, 2]),
        (2.5, 6, [3, 4, 5, 6]),
        (1.1, 1.3, [1.1]),
    ],
)
def test_round_numbers_beside_the_colours(lowest: float, highest: float, marked: list[float]) -> None:
    assert round_numbers(lowest, highest) == pytest.approx(marked)


def test_the_largest_is_on_top_and_epochs_are_named() -> None:
    axes = plot_spectra(epochs_of_spectra(30), history=edited_history()).axes[0]
    assert axes.yaxis_inverted()
    assert [label.get_text() for label in axes.get_xticklabels()][:3] == ["2", "4", "6"]
    assert [text.get_text() for text in axes.texts] == ["MI", "M"]


@pytest.mark.parametrize(("epochs", "r"), [(1, 1), (2, 4), (4, 8), (30, 8), (50, 128), (200, 64)])
def test_no_word_covers_another(epochs: int, r: int) -> None:
    figure = plot_spectra(epochs_of_spectra(epochs, r=r), history=edited_history(), title="mrpc-imlor2c-seed0: IMLoR2C")
    assert collisions(figure) == []
