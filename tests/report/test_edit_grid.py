"""The map over merges and injections: means by cell, blanks, the best one, and what the heading says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.patches import Rectangle
from tests.report.histories import collisions

from rankwise.report import Outcome, edit_grid, plot_edit_grid

TRIED = [Outcome(0, 0, 1, 0.8), Outcome(0, 0, 2, 0.9), Outcome(2, 0, 1, 0.7), Outcome(2, 3, 1, 0.95)]


def test_means_and_spreads_by_cell() -> None:
    found = edit_grid(TRIED)
    assert (found.merges, found.injections) == ([0, 2], [0, 3])
    assert found.values[0] == pytest.approx([0.85, 0.7])
    assert math.isnan(found.values[1][0])
    assert found.values[1][1] == 0.95
    assert found.spread[0][0] == pytest.approx(np.std([0.8, 0.9], ddof=1))
    assert math.isnan(found.spread[0][1])
    assert found.seeds == [[2, 1], [0, 1]]


def test_the_best_cell() -> None:
    assert edit_grid(TRIED).best == (1, 1)
    assert edit_grid(TRIED, greater_is_better=False).best == (0, 1)
    assert edit_grid([Outcome(1, 0, 0, 0.5), Outcome(0, 1, 0, 0.5)]).best == (0, 1)  # fewer injections first


def test_a_seed_counts_once_and_what_has_no_number_not_at_all() -> None:
    found = edit_grid([Outcome(0, 0, 1, 0.2), Outcome(0, 0, 1, 0.4), Outcome(0, 0, 2, math.nan)])
    assert (found.values, found.seeds) == ([[0.4]], [[1]])
    with pytest.raises(ValueError, match="no run has a value"):
        edit_grid([Outcome(0, 0, 1, math.nan)])


def test_the_picture_says_what_it_shows() -> None:
    figure = plot_edit_grid(TRIED, metric="accuracy", split="dev", title="mrpc")
    words = " ".join(text.get_text().replace("\n", " ") for text in figure.texts)
    assert figure.get_suptitle().split() == ["mrpc:", "accuracy", "on", "dev,", "1", "to", "2", "seeds"]
    assert "the best, 2 merges and 3 injections" in words
    assert "picked among 3, it flatters itself on dev" in words
    axes = figure.axes[0]
    assert sorted(text.get_text() for text in axes.texts) == ["0.7000", "0.8500", "0.9500", "± 0.0707"]
    (mesh,) = (each for each in axes.collections if isinstance(each, QuadMesh))
    assert np.ma.asarray(mesh.get_array()).mask.tolist() == [[False, False], [True, False]]
    (outline,) = (patch for patch in axes.patches if isinstance(patch, Rectangle))
    assert outline.get_xy() == (1, 1)


def test_one_seed_or_several_and_a_loss_that_shall_be_small() -> None:
    one = plot_edit_grid(
        [Outcome(0, 0, 0, 3.0), Outcome(1, 0, 0, 2.0)], metric="loss", split="dev", greater_is_better=False
    )
    assert "one seed" in one.get_suptitle()
    assert "the best, 1 merges and 0 injections" in " ".join(text.get_text().replace("\n", " ") for text in one.texts)
    several = plot_edit_grid([Outcome(0, 0, seed, 3.0) for seed in range(5)], metric="loss", split="dev")
    assert "5 seeds" in several.get_suptitle()


@pytest.mark.parametrize("size", [1, 2, 7, 9])
def test_no_word_covers_another(size: int) -> None:
    cells = [Outcome(m, i, s, 0.8 + 0.01 * (m + i + s)) for m in range(size) for i in range(size) for s in range(2)]
    assert collisions(plot_edit_grid(cells, metric="accuracy", split="dev", title="MiniLM on mrpc, last epoch")) == []
