"""The heat map: counted right, laid out as in the paper, legible without colours, whole on the disk."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from rankwise.report import draw_frequency, frequency, read_history, render_frequency


def record(chosen: list[str], candidates: list[str], unscored: tuple[str, ...] = ()) -> dict[str, Any]:
    scores = {name: 1.0 for name in candidates if name not in unscored}
    return {"scores": scores, "unscored": list(unscored), "chosen": chosen}


def linear(blocks: int, *projections: str) -> list[str]:
    return [f"layers.{block}.{name}" for block in range(blocks) for name in projections]


def shown(history: list[dict[str, Any]]) -> str:
    console = Console(width=120, color_system=None, record=True, file=io.StringIO())
    console.print(render_frequency(history))
    return console.export_text()


def test_the_share_of_searches_that_chose_a_path() -> None:
    names = linear(2, "value", "query")
    history = [
        record(["layers.0.query"], names),
        record(["layers.0.query", "layers.1.value"], names),
        record(["layers.1.value"], names, unscored=("layers.1.query",)),
        record(["layers.1.value"], names),
    ]
    rows, columns, values = frequency(history)
    assert rows == ["query", "value"]
    assert columns == [0, 1]
    assert values == [[0.5, 0.0], [0.0, 0.75]]


def test_a_path_that_was_never_scored_or_chosen_has_a_cell_of_its_own() -> None:
    rows, columns, values = frequency([record([], ["layers.3.q_proj"], unscored=("layers.3.q_proj",))])
    assert (rows, columns, values) == (["q_proj"], [3], [[0.0]])


def test_rows_stand_in_the_papers_order_whatever_the_family_calls_them() -> None:
    kinds = ["cut", "in", "res2", "res1"]
    others = ["self_attn.out_proj", "k_proj", "v_proj", "q_proj"]
    rows, _, _ = frequency([record([], linear(1, *kinds, *others))])
    assert rows == ["q_proj", "v_proj", "k_proj", "self_attn.out_proj", "res1", "res2", "in", "cut"]


def test_a_span_counts_in_each_block_it_runs_across() -> None:
    rows, columns, values = frequency([record(["layers.1-3.layer"], ["layers.0.layer", "layers.1-3.layer"])])
    assert (rows, columns, values) == (["layer"], [0, 1, 2, 3], [[0.0, 1.0, 1.0, 1.0]])


def test_blocks_are_ordered_by_number_and_what_lies_outside_comes_last() -> None:
    names = [*linear(11, "query"), "lm_head"]
    rows, columns, values = frequency([record(["lm_head"], names)])
    assert columns == [*range(11), -1]
    assert rows == ["query", "lm_head"]
    assert values[1][-1] == 1.0
    assert all(math.isnan(share) for share in values[1][:-1])


def test_two_stacks_of_blocks_get_rows_of_their_own() -> None:
    names = ["encoder.block.0.layer.0.SelfAttention.q", "decoder.block.1.layer.0.SelfAttention.q"]
    rows, columns, _ = frequency([record(names, names)])
    assert rows == ["decoder.block.layer.0.SelfAttention.q", "encoder.block.layer.0.SelfAttention.q"]
    assert columns == [0, 1]


def test_a_stored_history_is_read_back(tmp_path: Path) -> None:
    history = [record(["layers.0.query"], linear(1, "query", "value")), record([], linear(1, "query", "value"))]
    file = tmp_path / "search_history.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in history), encoding="utf-8")
    assert read_history(file) == history


@pytest.mark.parametrize("line", ['{"scores": {', '{"scores": {}, "chosen": []}', "[1, 2]"])
def test_a_line_that_is_no_search_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "search_history.jsonl"
    file.write_text(json.dumps(record([], [])) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2 is not a search"):
        read_history(file)


def test_an_empty_history_is_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no search"):
        frequency([])
    with pytest.raises(ValueError, match="holds no search"):
        draw_frequency([], tmp_path / "empty.png")
    assert list(tmp_path.iterdir()) == []


def test_the_terminal_shows_every_share_as_a_number_without_colours() -> None:
    names = linear(3, "query", "value")
    text = shown([record(["layers.2.value"], names), record(["layers.2.value", "layers.0.query"], names)])
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert "2 searches" in text
    assert lines[-3:] == [["block", "0", "1", "2"], ["query", "50%", "0%", "0%"], ["value", "0%", "0%", "100%"]]


def test_many_blocks_are_shown_as_shades_that_fit_the_screen() -> None:
    text = shown([record(["layers.31.query"], linear(32, "query", "value"))])
    assert max(map(len, text.splitlines())) <= 120
    assert [line.count("█") for line in text.splitlines() if "query" in line] == [2]


@pytest.mark.parametrize("blocks", [1, 6, 48])
def test_the_picture_is_a_whole_png(tmp_path: Path, blocks: int) -> None:
    from matplotlib.image import imread

    names = linear(blocks, "query", "value")
    path = draw_frequency([record(names[:1], names)], tmp_path / "deep" / "map.png")
    image = imread(path)
    assert min(image.shape[:2]) > 200
    assert [file.name for file in path.parent.iterdir()] == ["map.png"]


def test_the_svg_is_well_formed_and_holds_the_words(tmp_path: Path) -> None:
    names = linear(2, "query")
    path = draw_frequency([record(names, names)], tmp_path / "map.svg", title="Demo")
    assert ElementTree.parse(path).getroot().tag.endswith("svg")
    assert "Demo" in path.read_text(encoding="utf-8")


def test_another_file_format_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.png, \.svg, not '\.jpg'"):
        draw_frequency([record([], ["layers.0.query"])], tmp_path / "map.jpg")


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'rankwise\[report\]'"):
        draw_frequency([record([], ["layers.0.query"])], tmp_path / "map.png")
