"""Histories as files, and where names place paths."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.report.edits import edited_history
from tests.report.histories import mixed_history, paths, real_history, record

from rankwise.files import write_text_atomic
from rankwise.report import frequency, overlaps, read_history, score_ranges, shares
from rankwise.report.enabled import caption
from rankwise.report.history import in_order, row_of, searched
from rankwise.rules.records import HISTORY_FILE, edits, to_lines


def test_a_stored_history_is_read_back(tmp_path: Path) -> None:
    history = [record(["layers.0.query"], paths(1, "query", "value")), record([], paths(1, "query", "value"))]
    file = tmp_path / "search_history.jsonl"
    file.write_text(to_lines(history), encoding="utf-8")
    assert read_history(file) == history


@pytest.mark.parametrize("line", ['{"scores": {', '{"scores": {}, "chosen": []}', "[1, 2]"])
def test_a_line_that_is_no_search_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "search_history.jsonl"
    file.write_text(to_lines([record([], [])]) + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2 is not a search"):
        read_history(file)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("layers.3.query", "query"),
        ("layers.3.attention.output.dense", "attention.output.dense"),
        ("layers.0.in", "in"),
        ("layers.1-12.layer", "layer"),
        ("decoder.block.1.layer.0.SelfAttention.q", "decoder.block.layer.0.SelfAttention.q"),
        ("lm_head", "lm_head"),
    ],
)
def test_a_paths_row_is_its_projection_or_kind(name: str, row: str) -> None:
    assert row_of(name) == row


def test_each_row_stands_once_in_the_papers_order() -> None:
    given = ["layer", "cut", "up_proj", "in", "k_proj", "res2", "v_proj", "res1", "q_proj", "in"]
    wanted = ["q_proj", "v_proj", "k_proj", "up_proj", "res1", "res2", "in", "cut", "layer"]
    assert in_order(given) == wanted


def test_pictures_of_searches_leave_edits_out() -> None:
    searches = mixed_history(3, 4)
    mixed = [*edited_history()[:1], *searches[:2], *edited_history()[1:3], *searches[2:], *edited_history()[3:]]
    for read in (frequency, shares, overlaps, score_ranges):
        assert repr(read(mixed)) == repr(read(searches))
        with pytest.raises(ValueError, match="holds no search"):
            read(edited_history())
    assert caption(mixed) == "How often each path was enabled (% of 4 searches)"


def test_edits_are_read_too(tmp_path: Path) -> None:
    history = [*edited_history(), *mixed_history(2, 2)]
    (tmp_path / HISTORY_FILE).write_text(to_lines(history), encoding="utf-8")
    assert read_history(tmp_path / HISTORY_FILE) == history
    assert [len(searched(history)), len(edits(history))] == [2, 4]


def test_what_a_search_writes_is_what_the_pictures_read(tmp_path: Path) -> None:
    history = real_history()
    write_text_atomic(tmp_path / HISTORY_FILE, to_lines(history))
    assert read_history(tmp_path / HISTORY_FILE) == history
    assert [each["step"] for each in history] == [0, 2, 4]
