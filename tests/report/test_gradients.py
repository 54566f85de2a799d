"""The ratio of gradients: against numbers worked out by hand, with and without the norm of ``B``."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tests.report.edits import Line, epochs_of_gradients

from rankwise.report import gradient_ratio, plot_gradient_ratio, read_gradients
from rankwise.report.gradients import MOST_EPOCHS, grouped


def epoch(*layer: tuple[float, float, float] | None, number: float = 1.0) -> Line:
    """Blocks by ``grad_A``, ``grad_B`` and ``norm_B`` of their ``layer`` path; LoRA has 1, 2 and 3."""

    def kind(a: float, b: float, norm: float) -> Line:
        return {"grad_A": a, "grad_B": b, "size_A": 10, "size_B": 30, "norm_B": norm}

    blocks = {
        str(block): {"linear": kind(1, 2, 3)} | ({"layer": kind(*found)} if found is not None else {})
        for block, found in enumerate(layer)
    }
    return {"epoch": number, "step": 10, "steps": 10, "blocks": blocks}


def test_the_ratio_is_of_means_over_all_entries() -> None:
    found = gradient_ratio([epoch((4, 4, 1)), epoch((2, 8, 1), number=2)])
    assert found.blocks == [0]
    assert found.epochs == [1, 2]
    assert found.values == [[pytest.approx(4 / 1.75), pytest.approx((2 * 10 + 8 * 30) / 40 / 1.75)]]


def test_at_equal_norm_only_the_part_that_grows_with_b_is_scaled() -> None:
    found = gradient_ratio([epoch((4, 4, 6))], equal_norm=True)
    assert found.values == [[pytest.approx((4 * 3 / 6 * 10 + 4 * 30) / 40 / 1.75)]]


def test_a_block_without_both_is_blank_and_so_is_what_has_no_number() -> None:
    records = [epoch((4, 4, 1), None, (4, 4, 0)), epoch((math.inf, 4, 1), (4, 4, 1), (4, 4, 1), number=2)]
    found = gradient_ratio(records)
    assert found.blocks == [0, 1, 2]
    assert [[math.isnan(value) for value in row] for row in found.values] == [[False, True], [True, False], [False] * 2]
    assert math.isnan(gradient_ratio(records, equal_norm=True).values[2][0])  # its B was zero


@pytest.mark.parametrize(
    ("means", "wanted"),
    [
        ([1, 2, 3, 4], 1.0),
        ([4, 3, 1, 2], -0.8),
        ([3, 1, 1, 5], 1.5 / math.sqrt(22.5)),  # ties share their mean rank
        ([2, 2, 7, 1, 1, 9], 1.5 / math.sqrt(288.75)),
    ],
)
def test_the_rank_correlation_is_spearmans(means: list[float], wanted: float) -> None:
    found = gradient_ratio([epoch(*((mean, mean, 1) for mean in means))])
    assert found.correlation == pytest.approx(wanted)


def test_a_panel_without_a_number_is_empty() -> None:
    """LoR2C's B was zero throughout, so there is no ratio at equal norm."""
    figure = plot_gradient_ratio([epoch((1, 1, 0), (2, 2, 0))])
    assert [len(axes.collections) for axes in figure.axes] == [1, 0]


@pytest.mark.parametrize("means", [[1], [1, 2], [5, 5, 5]])
def test_there_is_no_correlation_of_too_few_or_equal_numbers(means: list[float]) -> None:
    assert math.isnan(gradient_ratio([epoch(*((mean, mean, 1) for mean in means))]).correlation)


@pytest.mark.parametrize("records", [[], [epoch(None, None)]])
def test_no_block_with_both_is_refused(records: list[Line]) -> None:
    with pytest.raises(ValueError, match="no block has gradients of both"):
        gradient_ratio(records)


def test_many_epochs_are_averaged_in_groups() -> None:
    found = gradient_ratio([epoch((number, number, 1), number=number) for number in range(1, 31)])
    shown = grouped(found)
    assert shown.epochs == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30]
    assert shown.values[0][0] == pytest.approx(2 / 1.75)
    assert grouped(found, 30) == found
    uneven = grouped(gradient_ratio([epoch((n, n, 1), number=n) for n in range(1, 15)]))
    assert uneven.epochs == [2, 4, 6, 8, 10, 12, 14]
    assert len(uneven.epochs) <= MOST_EPOCHS


def test_a_bar_for_each_number_in_both_panels() -> None:
    records = epochs_of_gradients(3, 4)
    figure = plot_gradient_ratio(records)
    for axes, equal_norm in zip(figure.axes, (False, True), strict=True):
        (bars,) = axes.collections
        assert len(bars.get_facecolor()) == 3 * 4 * 6  # a bar has six sides
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2", "3"]
        highest = max(value for row in gradient_ratio(records, equal_norm=equal_norm).values for value in row)
        assert highest == (6.0 if not equal_norm else 6 * (0.5 * 10 + 30) / 40)
        assert "rank correlation with the block -1.00" in axes.get_title()


def test_the_flat_form_writes_every_number_and_leaves_the_unknown_empty() -> None:
    records = epochs_of_gradients(3, 4)
    figure = plot_gradient_ratio([*records, epoch((1, 1, 0), None, (2, 2, 1), (3, 3, 1), number=4)], flat=True)
    for axes, equal_norm in zip(figure.axes, (False, True), strict=True):
        values = gradient_ratio(
            [*records, epoch((1, 1, 0), None, (2, 2, 1), (3, 3, 1), number=4)], equal_norm=equal_norm
        )
        written = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
        wanted = {
            (x, y): f"{value:.3g}"
            for x, row in enumerate(values.values)
            for y, value in enumerate(row)
            if not math.isnan(value)
        }
        assert written == wanted
        assert len(written) == (15 if not equal_norm else 14), "B was zero once, and a block had no LoRA once"
        assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2", "3", "4"]


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gradients.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1 is not an epoch's gradients of rankwise"):
        read_gradients(tmp_path / "gradients.jsonl")
