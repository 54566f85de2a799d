"""The overlap of consecutive choices, and the budget as what chance gives."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from tests.report.histories import collisions, mixed_history, paths, real_history, record

from rankwise.report import overlaps, plot_overlap
from rankwise.report.history import History

NAMES = paths(4, "query", "value")


def chosen(*choices: list[int], budget: float | int = 0.25) -> History:
    return [
        record([NAMES[place] for place in choice], NAMES, step=3 * search, budget=budget)
        for search, choice in enumerate(choices)
    ]


def test_the_share_of_the_previous_choice_that_stays() -> None:
    found = overlaps(chosen([0, 1], [1, 2], [1, 2, 3, 4], [5], [5]))
    assert found.steps == [3, 6, 9, 12]
    assert found.values == [0.5, 1.0, 0.0, 1.0]
    assert found.mean == 0.625


def test_after_nothing_there_is_no_overlap() -> None:
    found = overlaps(chosen([], [0], [0, 1]))
    assert math.isnan(found.values[0])
    assert (found.values[1], found.mean) == (1.0, 1.0)
    assert math.isnan(overlaps(chosen([], [])).mean)


def test_one_search_has_nothing_to_overlap_with() -> None:
    with pytest.raises(ValueError, match="two searches at least"):
        overlaps(chosen([0]))


def test_only_a_fraction_is_a_reference() -> None:
    assert overlaps(chosen([0], [1], budget=0.25)).budget == 0.25
    assert overlaps(chosen([0], [1], budget=1024)).budget is None
    for budget, lines in ((0.25, [0.25, 0.25]), (1024, None)):
        axes = plot_overlap(chosen([0], [1], budget=budget)).axes[0]
        drawn = [list(map(float, line.get_ydata())) for line in axes.lines[1:]]  # type: ignore[arg-type]
        assert drawn == ([lines] if lines else [])


def test_random_choices_overlap_by_the_budget_on_average() -> None:
    repeated = [overlaps(real_history(proxy="constant", search_every=1, seed=seed)).mean for seed in range(8)]
    assert sum(repeated) / len(repeated) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("budget", [0.0, 0.25, 1.0, 4096])
def test_no_word_covers_another(budget: float) -> None:
    history = [replace(each, budget=budget) for each in mixed_history(24, 100)]
    assert collisions(plot_overlap(history)) == []
