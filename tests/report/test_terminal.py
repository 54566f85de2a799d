"""The heat map in the terminal: the same without colours, and never wider than the screen."""

from __future__ import annotations

import io

from rich.console import Console
from tests.report.histories import paths, record

from rankwise.report import render_frequency
from rankwise.report.history import History


def shown(history: History) -> str:
    console = Console(width=120, color_system=None, record=True, file=io.StringIO())
    console.print(render_frequency(history))
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
