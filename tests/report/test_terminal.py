"""The heat map in the terminal: the same without colours, and never wider than the screen."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType
from tests.report.histories import paths, record
from tests.report.test_rank_map import GUARDED, TIMED
from tests.report.test_rank_map import plan as planned

from rankwise.report import render_frequency
from rankwise.report.history import History
from rankwise.report.rank_map import details, summary
from rankwise.report.terminal import render_ranks


def shown(history: History) -> str:
    return printed(render_frequency(history))


def printed(shape: RenderableType) -> str:
    console = Console(width=120, color_system=None, record=True, file=io.StringIO())
    console.print(shape)
    return console.export_text()


def test_the_terminal_shows_every_share_as_a_number_without_colours() -> None:
    names = paths(3, "query", "value")
    text = shown([record(["layers.2.value"], names), record(["layers.2.value", "layers.0.query"], names)])
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert "2 searches" in text
    assert lines[-3:] == [["block", "0", "1", "2"], ["query", "50%", "0%", "0%"], ["value", "0%", "0%", "100%"]]


def test_many_blocks_are_shown_as_shades_that_fit_the_screen() -> None:
    text = shown([record(["layers.31.query"], paths(32, "query", "value"))])
    assert max(map(len, text.splitlines())) <= 120
    assert [line.count("█") for line in text.splitlines() if "query" in line] == [2]


def test_the_ranks_of_a_plan_stand_in_the_terminal_with_all_that_is_said_of_them() -> None:
    lines = printed(render_ranks(planned(**GUARDED, time=TIMED))).splitlines()
    words = [line.split() for line in lines]
    assert words[1:7] == [
        ["block", "0", "1", "other"],
        ["query", "·"],
        ["value", "3", "1"],
        ["lm_head", "4"],
        ["cut", "2"],
        ["layer", "1", "1"],
    ]
    assert words[7][-2:] == ["predicted", "gain"]
    assert words[8:11] == [["3", "40%", "0.5"], ["2", "66%", "1.75", "<-", "the", "plan"], ["1", "70%", "1.75"]]
    said = [line.rstrip() for line in lines[11:]]
    assert said[0] == summary(planned(time=TIMED))
    assert said[1:] == [*details(planned(**GUARDED)), "Warning: the data <can't> tell"]


def test_a_plan_without_a_time_limit_or_halves_says_only_what_it_has() -> None:
    lines = printed(render_ranks(planned(budget=110))).splitlines()
    assert lines[-1].rstrip() == summary(planned(budget=110))
    assert len(lines) == 8
