"""Scores over time: only what was measured, on a scale that fits."""

from __future__ import annotations

import math

import pytest
from tests.report.histories import KINDS, collisions, mixed_history, paths, real_history, record

import rankwise
from rankwise.report import plot_scores, score_ranges
from rankwise.report.scores import is_logarithmic
from rankwise.rules.records import SearchRecord

NAMES = paths(3, "query", "in")


def scored(
    *, step: int = 0, proxy: str = "grad_norm", unscored: tuple[str, ...] = (), **scores: float | None
) -> SearchRecord:
    """A search of ``NAMES``; ``q0=3.0`` is the score of block 0's query."""
    rows = {"q": "query", "i": "in"}
    values = {f"layers.{key[1:]}.{rows[key[0]]}": value for key, value in scores.items()}
    return record([], list(values), unscored, step=step, scores=values, proxy=proxy)


def test_lowest_median_and_highest_over_the_blocks() -> None:
    found = score_ranges(
        [scored(q0=3.0, q1=1.0, q2=8.0, i0=0.5), scored(step=4, q0=2.0, q1=1.0, q2=1.5, i0=0.25, i1=0.75)]
    )
    assert (found.proxy, found.steps, found.rows) == ("grad_norm", [0, 4], ["query", "in"])
    assert found.low == [[1.0, 1.0], [0.5, 0.25]]
    assert found.middle == [[3.0, 1.5], [0.5, 0.5]]
    assert found.high == [[8.0, 2.0], [0.5, 0.75]]
    assert found.not_finite == 0


def test_scores_that_were_not_measured_or_not_finite_are_left_out() -> None:
    found = score_ranges(
        [scored(q0=3.0, q1=None, i0=7.0, unscored=("layers.0.in",)), scored(step=1, q0=2.0, q1=4.0, i0=0.5)]
    )
    assert found.middle[0] == [3.0, 3.0]
    assert math.isnan(found.middle[1][0])
    assert found.middle[1][1] == 0.5
    assert found.not_finite == 1


def test_warm_up_searches_by_another_proxy_are_left_out() -> None:
    history = [scored(q0=1.0, proxy="constant"), scored(step=5, q0=0.25), scored(step=10, q0=0.5)]
    found = score_ranges(history)
    assert (found.steps, found.middle) == ([5, 10], [[0.25, 0.5]])
    assert "without 1 warm-up search" in " ".join(text.get_text() for text in plot_scores(history).texts)


def test_no_score_at_all_is_said() -> None:
    with pytest.raises(ValueError, match="no path has a finite grad_norm score of its own"):
        score_ranges([scored(q0=None), scored(i1=2.0, unscored=("layers.1.in",))])
    with pytest.raises(ValueError, match="holds no search"):
        score_ranges([])


def test_the_ranges_of_a_real_search_are_its_scores() -> None:
    history = real_history()
    found = score_ranges(history)
    assert found.rows == ["query", "value"]
    for place, each in enumerate(history):
        values = [value for name, value in each.scores.items() if name.endswith("value") and value is not None]
        assert len(values) == 2
        assert (found.low[1][place], found.high[1][place]) == (min(values), max(values))


@pytest.mark.parametrize(
    ("scores", "expected"),
    [((1.0, 9.0), False), ((1.0, 10.0), True), ((0.0, 10.0), False), ((-1.0, 10.0), False), ((0.0, 0.0), False)],
)
def test_a_logarithmic_scale_for_positive_scores_far_apart(scores: tuple[float, float], expected: bool) -> None:
    history = [scored(q0=scores[0], i0=scores[1])]
    assert is_logarithmic(score_ranges(history)) is expected
    assert plot_scores(history).axes[0].get_yscale() == ("log" if expected else "linear")


def test_a_panel_for_each_row_with_one_scale() -> None:
    figure = plot_scores(mixed_history())
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["query", "value", *KINDS]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert {len(axes.lines) for axes in figure.axes} == {6}


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 12])
def test_no_word_covers_another(rows: int) -> None:
    names = paths(6, *(f"projection_{row}" for row in range(rows)))
    scores: dict[str, float | None] = {name: 10.0**place for place, name in enumerate(names)}
    history = [record([], names, step=1000 * search, scores=scores) for search in range(40)]
    figure = plot_scores(history, title="a-folder-with-a-rather-long-name-seed0: grad_norm, dynamic, separated")
    assert collisions(figure) == []
    labelled = [axes for axes in figure.axes if any(label.get_visible() for label in axes.get_xticklabels())]
    assert len([axes for axes in labelled if axes.get_visible()]) == min(rows, 3 if rows <= 6 else 4)


def test_the_fields_of_a_history_that_the_scores_need_are_in_its_records() -> None:
    model_record = real_history()[0]
    assert {"step", "proxy", "scores", "unscored", "chosen", "budget"} <= model_record.to_dict().keys()
    assert model_record["proxy"] == rankwise.HeteroLoraConfig(target_modules=["query"], mode="dynamic").proxy
