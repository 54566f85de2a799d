"""The diagram of edits: a bar for each path over its blocks, labelled by what the next edit chose by."""

from __future__ import annotations

from dataclasses import replace

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from tests.report.edits import edited_history, edits, layers, lora, merge
from tests.report.histories import collisions

from rankwise import Disable
from rankwise.report import plot_structure, structures


def test_bars_span_their_blocks_row_by_row() -> None:
    axes = plot_structure(edited_history()).axes[0]
    bars = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    assert len(bars) == sum(len(each.bars) for each in structures(edited_history()))
    long = [(bar.get_x(), bar.get_width()) for bar in bars if bar.get_width() > 1]
    assert long == [pytest.approx((1.08, 1.84))] * 2 + [pytest.approx((1.08, 2.84))] * 2
    assert axes.yaxis_inverted()
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[:2] == ["start", "merge 1 + 2\nstep 10"]
    with_epochs = plot_structure(edited_history(), epochs={10: 1.0, 20: 2.5}).axes[0]
    assert [label.get_text().split("\n")[-1] for label in with_epochs.get_yticklabels()] == [
        "start",
        "step 10, epoch 1",
        "step 10, epoch 1",
        "step 20, epoch 2.5",
        "step 30",
    ]


def test_lora_beside_a_path_of_the_same_block_has_a_lane_of_its_own() -> None:
    both = [*layers(0, 1), *lora(0, 1)]
    figure = plot_structure([edits([merge("0", "1")], both, [*layers("0-1"), *lora(0, 1)])])
    bars = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyBboxPatch)]
    places = [(round(bar.get_y(), 3), round(bar.get_y() + bar.get_height(), 3)) for bar in bars[:4]]
    assert places[0] == places[1]
    assert places[2] == places[3]
    assert places[0][1] < places[2][0]
    assert collisions(figure) == []


@pytest.mark.parametrize("blocks", [6, 12, 24, 32])
def test_no_word_covers_another(blocks: int) -> None:
    assert collisions(plot_structure(edited_history(blocks), title="mrpc-imlor2c-seed0: IMLoR2C, 2 merges")) == []


def bars_of(figure: Figure, row: int) -> list[FancyBboxPatch]:
    """The bars of a row of the diagram, the first row being the start."""
    found = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyBboxPatch)]
    return [bar for bar in found if row - 0.5 < bar.get_y() + bar.get_height() / 2 < row + 0.5]


def words_in(figure: Figure, row: int) -> list[str]:
    """What stands in a row of the diagram, from left to right."""
    texts = [text for text in figure.axes[0].texts if row - 0.5 < text.get_position()[1] < row + 0.5]
    return [text.get_text() for text in sorted(texts, key=lambda text: text.get_position()[0])]


def test_bars_show_the_scores_and_outline_what_the_next_edit_changes() -> None:
    figure = plot_structure(edited_history())
    assert words_in(figure, 0) == ["", "0.250", "0.500", "0.500", "0.500", "0.500"]  # block 0 had no score
    assert words_in(figure, 1) == ["0.500"] * 4 + ["0.500", "500"]
    assert words_in(figure, 2)[-2:] == ["q, v", "600"]
    outlined = [[bar.get_linewidth() > 0 for bar in bars_of(figure, row)] for row in (0, 4)]
    assert outlined == [[False, True, True, False, False, False], [False] * 4]


@pytest.mark.parametrize(
    ("metric", "score", "blocks", "said"),
    [
        ("sfs", 0.12345, 6, "0.123"),
        ("sfs", 0.12345, 13, "0.12"),  # narrow columns
        ("mean_sv", 1234.5, 6, "1.2e+03"),
        ("mean_sv", 0.012345, 6, "0.012"),
    ],
)
def test_scores_have_the_digits_that_their_column_has_room_for(
    metric: str, score: float, blocks: int, said: str
) -> None:
    names = layers(*range(blocks))
    made = edits([merge("0", "1")], names, layers("0-1", *range(2, blocks)), scores={"layers.0.layer": score})
    assert words_in(plot_structure([replace(made, metric=metric)]), 0)[0] == said


def test_a_frozen_bar_is_hatched_and_the_note_says_so_where_there_is_one() -> None:
    span = Disable("layers.0-1.layer")
    frozen = plot_structure([edits([merge("0", "1"), span], layers(0, 1, 2), layers(2), frozen=50)])
    assert [bar.get_hatch() for bar in bars_of(frozen, 1)] == ["////", None]
    assert "hatched: no longer trained" in note_of(frozen)
    plainly = note_of(plot_structure(edited_history()))
    assert "hatched" not in plainly
    assert "blue: LoRA on the named projections" in plainly
    assert "numbers: the SFS that the next edit chose by" in plainly


def note_of(figure: Figure) -> str:
    return " ".join(" ".join(text.get_text() for text in figure.texts).split())


def test_many_blocks_are_numbered_in_twos() -> None:
    few, many = (plot_structure(edited_history(blocks)).axes[0] for blocks in (24, 25))
    assert [label.get_text() for label in few.get_xticklabels()] == [str(block) for block in range(24)]
    assert [label.get_text() for label in many.get_xticklabels()] == [str(block) for block in range(0, 25, 2)]


def test_a_history_without_edits_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no edit"):
        plot_structure([])
