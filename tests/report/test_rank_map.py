"""A rank plan as a picture and as a table: every rank in its cell, the curve of what it is predicted to bring."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from tests.report.histories import collisions

from rankwise.planning.rank_plan import Depth, Pick, RankPlan, Time
from rankwise.planning.step_time import StepTime
from rankwise.report.history import OUTSIDE
from rankwise.report.rank_map import depth_table, details, draw_ranks, html_of, plot_ranks, rank_table, summary

RANKS = {
    "layers.0.value": 3,
    "layers.0.query": 0,
    "layers.1.value": 1,
    "layers.1.cut": 2,
    "layers.0-1.layer": 1,
    "lm_head": 4,
}
NAN = math.nan


def plan(ranks: dict[str, int] | None = None, **fields: Any) -> RankPlan:
    """A plan whose picks cost 10 each and bring 1, 1/2, 1/4, ..."""
    ranks = RANKS if ranks is None else ranks
    names = [name for name, rank in ranks.items() for _ in range(rank)]
    picks = tuple(Pick(name, 0.5**number, 10) for number, name in enumerate(names))
    costs = dict.fromkeys(ranks, 10)
    fields = {"budget": 1234, **fields}
    return RankPlan(ranks, modules={}, costs=costs, picks=picks, scale=2.0, **fields)


def same(one: list[list[float]], other: list[list[float]]) -> bool:
    return str(one) == str(other)  # NaN is unlike itself


def test_a_rank_stands_in_the_cell_of_its_row_and_block() -> None:
    table = rank_table(RANKS)
    assert table.rows == ["query", "value", "lm_head", "cut", "layer"]
    assert table.columns == [0, 1, OUTSIDE]  # what lies in no block comes last
    assert same(
        table.values,
        [[0.0, NAN, NAN], [3.0, 1.0, NAN], [NAN, NAN, 4.0], [NAN, 2.0, NAN], [1.0, 1.0, NAN]],
    )


def test_blocks_are_in_the_order_of_their_numbers_and_stacks_apart() -> None:
    table = rank_table({f"layers.{block}.q_proj": block for block in (10, 9, 2)})
    assert (table.columns, table.values) == ([2, 9, 10], [[2.0, 9.0, 10.0]])
    names = [f"model.{stack}.layers.0.self_attn.q_proj" for stack in ("encoder", "decoder")]
    two = rank_table({names[0]: 1, names[1]: 2})
    assert len(two.rows) == 2
    assert two.columns == [0]
    assert sorted(row[0] for row in two.values) == [1.0, 2.0]
    assert rank_table({}) == ([], [], [])


def test_the_summary_is_what_a_hand_adds_up() -> None:
    # 11 picks of 10 parameters; 1 + 1/2 + ... = 2 - 2^-10, of which the first is more than half
    assert summary(plan()) == "110 of 1,234 parameters; predicted gain 2, half of it with 10"
    assert summary(plan({"layers.0.query": 0})) == "0 of 1,234 parameters; predicted gain 0, half of it with 0"


STEP = StepTime(1.0, (), (), (), {}, {}, {}, {})
GUARDED: dict[str, Any] = {
    "unspent_because": "one more rank costs at least 2,000 parameters",
    "overlap": 0.8312,
    "kept": 0.925,
    "seconds": 3.24,
    "passes": 48,
    "warnings": ("the data <can't> tell",),
}
TIMED = Time(0.7, 0.66, False, STEP, (Depth(3, 0.4, 0.5), Depth(2, 0.66, 1.75), Depth(1, 0.695, 1.75)))


def test_details_say_what_is_left_how_far_halves_agree_and_what_it_took() -> None:
    assert details(plan(**GUARDED)) == [
        "1,124 parameters left: one more rank costs at least 2,000 parameters",
        "two halves of the batches: overlap 0.83, 92% of the gain kept",
        "planned in 3.2 s with 48 passes",
    ]
    assert details(plan(budget=110)) == []  # a plan of an earlier version, all spent, without halves


def test_other_depths_stand_beside_that_of_the_plan_the_shallowest_of_equals() -> None:
    assert depth_table(plan()) is None
    assert depth_table(plan(time=TIMED)) == (
        ("backward pass down to block", "of uniform LoRA's time", "predicted gain"),
        [("3", "40%", "0.5"), ("2", "66%", "1.75"), ("1", "70%", "1.75")],
        1,
    )


def test_a_notebook_and_a_picture_have_the_details_too() -> None:
    shown = html_of(plan(**GUARDED, time=TIMED))
    assert all(f"<p>{line}</p>" in shown for line in details(plan(**GUARDED)))
    assert "<p>the data &lt;can&#x27;t&gt; tell</p>" in shown
    assert cells(shown)[-4:] == [
        ["backward pass down to block", "of uniform LoRA's time", "predicted gain"],
        ["3", "40%", "0.5"],
        ["2", "66%", "1.75"],
        ["1", "70%", "1.75"],
    ]
    assert shown.count("<th>2</th><th>66%</th><th>1.75</th>") == 1
    figure = plot_ranks(plan(**GUARDED))
    words = " ".join(figure.texts[-1].get_text().split())
    assert words.startswith(summary(plan()))
    assert all(line in words for line in details(plan(**GUARDED)))
    assert words.endswith("1 warning, see plan.warnings")


def cells(text: str) -> list[list[str]]:
    """The texts of an HTML table, line by line."""
    lines = re.findall(r"<tr>(.*?)</tr>", text)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in lines]


def test_the_table_of_a_notebook_has_every_rank() -> None:
    shown = html_of(plan())
    assert cells(shown) == [
        ["", "0", "1", "outside"],
        ["query", "0", "", ""],
        ["value", "3", "1", ""],
        ["lm_head", "", "", "4"],
        ["cut", "", "2", ""],
        ["layer", "1", "1", ""],
    ]
    assert shown.startswith(f"<p>{summary(plan())}</p>")
    depths = {int(rank): depth for depth, rank in re.findall(r"rgba\(8,81,156,([\d.]+)\)'>(\d+)<", shown)}
    assert depths == {0: "0.00", 1: "0.25", 2: "0.50", 3: "0.75", 4: "1.00"}
    assert {rank: ink for ink, rank in re.findall(r"color:(#\w+);[^>]*>(\d)<", shown)} == {
        **dict.fromkeys("012", "#333"),
        **dict.fromkeys("34", "#fff"),
    }


def test_names_and_notes_can_not_leave_the_table() -> None:
    shown = html_of(plan({"layers.0.<b>q</b>": 1}, warnings=("a < b & <script>", "é")))
    assert "<script" not in shown
    assert "<b>" not in shown
    assert "<p>a &lt; b &amp; &lt;script&gt;</p><p>é</p>" in shown


def drawn(figure: Figure) -> dict[tuple[int, int], str]:
    """The numbers in the map by column and row."""
    return {
        (int(text.get_position()[0]), int(text.get_position()[1])): text.get_text() for text in figure.axes[0].texts
    }


def test_the_map_has_a_number_for_every_rank_above_zero_and_its_colour_follows() -> None:
    figure = plot_ranks(plan())
    assert drawn(figure) == {(0, 1): "3", (1, 1): "1", (2, 2): "4", (1, 3): "2", (0, 4): "1", (1, 4): "1"}
    ranks, gain = figure.axes
    assert [label.get_text() for label in ranks.get_xticklabels()] == ["0", "1", "outside"]
    assert [label.get_text() for label in ranks.get_yticklabels()] == rank_table(RANKS).rows
    (mesh,) = (item for item in ranks.collections if isinstance(item, QuadMesh))
    assert mesh.get_clim() == (0, 4)
    assert ranks.yaxis_inverted()
    line, half = gain.lines
    assert list(line.get_xdata()) == list(range(0, 120, 10))  # type: ignore[arg-type]
    assert list(line.get_ydata())[:4] == [0, 1, 1.5, 1.75]  # type: ignore[arg-type]
    assert list(half.get_xdata()) == [10, 10, 0]  # type: ignore[arg-type]
    assert list(half.get_ydata())[1] == pytest.approx(1 - 2**-11)  # type: ignore[arg-type]


@pytest.mark.parametrize(("blocks", "labels", "numbers"), [(24, 24, 24), (25, 25, 0), (48, 24, 0)])
def test_many_blocks_lose_their_numbers_and_then_labels(blocks: int, labels: int, numbers: int) -> None:
    figure = plot_ranks(plan({f"layers.{block}.query": 1 for block in range(blocks)}))
    assert len(figure.axes[0].get_xticks()) == labels
    assert len(drawn(figure)) == numbers


@pytest.mark.parametrize(
    "ranks",
    [
        RANKS,
        {"layers.0.query": 1},
        {"layers.0.query": 0},  # a budget below the price of one
        {f"layers.{block}.{row}": block for block in range(32) for row in ("self_attn.q_proj", "mlp.down_proj")},
    ],
    ids=["all kinds", "one", "nothing chosen", "many"],
)
def test_no_word_covers_another(ranks: dict[str, int]) -> None:
    assert collisions(plot_ranks(plan(ranks), title="mrpc: where 73,728 parameters go")) == []
    assert collisions(plot_ranks(plan(ranks, **GUARDED, time=TIMED))) == []


def test_a_picture_is_written_in_one_move_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plan.svg").write_text("before")
    assert draw_ranks(plan(), tmp_path / "plan.svg", title="Où vont les rangs") == tmp_path / "plan.svg"
    assert "Où vont les rangs" in (tmp_path / "plan.svg").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.svg"]
    with pytest.raises(ValueError, match=r"plan\.pdf' must end in one of \.png, \.svg, not '\.pdf'"):
        draw_ranks(plan(), tmp_path / "plan.pdf")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'rankwise\[report\]'"):
        draw_ranks(plan(), tmp_path / "other.png")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.svg"]
