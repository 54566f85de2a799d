"""Histories as files, and where names place paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.report.histories import paths, real_history, record

from rankwise.allocation.record import HISTORY
from rankwise.files import write_text_atomic
from rankwise.report import read_history
from rankwise.report.history import in_order, row_of


def test_a_stored_history_is_read_back(tmp_path: Path) -> None:
    history = [record(["layers.0.query"], paths(1, "query", "value")), record([], paths(1, "query", "value"))]
    file = tmp_path / "search_history.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in history), encoding="utf-8")
    assert read_history(file) == history


@pytest.mark.parametrize("line", ['{"scores": {', '{"scores": {}, "chosen": []}', "[1, 2]"])
def test_a_line_that_is_no_search_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "search_history.jsonl"
    file.write_text(json.dumps(record([], [])) + "\n" + line + "\n", encoding="utf-8")
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


def test_what_a_search_writes_is_what_the_pictures_read(tmp_path: Path) -> None:
    history = real_history()
    write_text_atomic(tmp_path / HISTORY, "".join(json.dumps(each) + "\n" for each in history))
    assert read_history(tmp_path / HISTORY) == history
    assert [each["step"] for each in history] == [0, 2, 4]
