"""Shares over time: they add up, and the reference is what choosing at random gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.patches import StepPatch
from tests.report.histories import collisions, mixed_history, paths, real_history, record

from rankwise.report import plot_share, shares
from rankwise.report.history import History
from rankwise.report.share import step_edges

NAMES = ["layers.0.query", "layers.0.value", "layers.0.in", "layers.1.query", "layers.1.value", "layers.1.in"]


def history() -> History:
    choices = [["layers.0.in", "layers.1.in"], ["layers.0.query", "layers.0.value", "layers.1.value", "layers.1.in"]]
    return [record(choice, NAMES, step=10 * search) for search, choice in enumerate(choices)]


def test_each_rows_part_of_the_enabled_paths() -> None:
    found = shares(history())
    assert found.steps == [0, 10]
    assert found.rows == ["query", "value", "in"]
    assert found.values == [[0.0, 0.25], [0.0, 0.5], [1.0, 0.25]]
    assert found.linear == [0.0, 0.75]
    assert found.expected == [2 / 3, 2 / 3]


def test_the_shares_of_a_search_add_up_to_all_of_it() -> None:
    for each in (mixed_history(), real_history()):
        assert np.sum(shares(each).values, axis=0) == pytest.approx(1)


def test_a_span_counts_once_and_a_search_may_leave_everything_off() -> None:
    found = shares([record(["layers.0.layer", "layers.1-3.layer", "layers.1.query"], []), record([], NAMES)])
    assert found.rows == ["query", "value", "in", "layer"]
    assert [values[0] for values in found.values] == [1 / 3, 0, 0, 2 / 3]
    assert all(math.isnan(values[1]) for values in found.values)
    assert math.isnan(found.linear[1])


def test_no_search_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no search"):
        shares([])


def test_a_choice_holds_until_the_next_search() -> None:
    assert step_edges([0, 5, 10, 30]) == [0, 5, 10, 30, 35]
    assert step_edges([7]) == [7, 8]


def test_the_bands_lie_on_each_other_up_to_one() -> None:
    axes = plot_share(history()).axes[0]
    bands = [patch.get_data() for patch in axes.patches if isinstance(patch, StepPatch) and patch.get_fill()]
    tops, edges, bottoms = zip(*bands, strict=True)
    assert np.array_equal(bottoms, [[0, 0], *tops[:-1]])
    assert tops[-1] == pytest.approx([1, 1])
    assert np.array_equal(edges, [[0, 10, 20]] * 3)


def test_a_line_marks_the_projections_where_there_are_shortcuts() -> None:
    def legend(records: History) -> list[str]:
        box = plot_share(records).axes[0].get_legend()
        assert box is not None
        return [text.get_text().replace("\n", " ") for text in box.get_texts()]

    assert legend(history()) == ["in", "value", "query", "all projections", "their share of the candidates"]
    assert legend([record(["layers.0.value"], paths(1, "query", "value"))]) == ["value", "query"]
    assert legend([record(["layers.0.in"], paths(1, "in"))]) == ["in"]


@pytest.mark.parametrize(("blocks", "searches"), [(6, 8), (24, 100)])
def test_no_word_covers_another(blocks: int, searches: int) -> None:
    assert collisions(plot_share(mixed_history(blocks, searches), title="mrpc-seed0: grad_norm, dynamic")) == []
