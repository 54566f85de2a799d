"""A run's paths as plain data: which were on when, ranks, scores, singular values."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.report.edits import edits, epochs_of_gradients, layers, merge
from tests.report.histories import paths, record

from rankwise.report.moments import moments
from rankwise.rules.records import Record, SearchRecord
from rankwise.runs.folder import RunFolder
from rankwise.runs.results.path_detail import (
    DIRECTIONS,
    MOST_MOMENTS,
    gradients_shown,
    moments_of,
    overlap_over_time,
    paths_shown,
    scores_over_time,
    spectra_shown,
)
from rankwise.runs.results.weights import Weight


def test_a_long_history_is_thinned_and_says_so() -> None:
    names = paths(2, "query", "value")
    history = [record([names[place % 4]], names, step=place) for place in range(1000)]
    found = paths_shown(history, moments(history), {})
    assert len(found["moments"]) == MOST_MOMENTS
    assert found["thinned"] == 1000
    assert [found["moments"][place]["step"] for place in (0, -1)] == [0, 999]
    assert found["paths"][0]["share"] == 0.25


NAMES = ["layers.0.query", "layers.0.value", "layers.1.query", "layers.1.cut", "head"]


def shown(history: Sequence[Record], ranks: dict[str, int] | None = None) -> dict[str, Any]:
    return paths_shown(history, moments(history), ranks or {})


def test_paths_are_sorted_by_block_and_row_with_what_lies_outside_last() -> None:
    found = shown([record(NAMES[:2], NAMES[::-1])])
    assert [path["name"] for path in found["paths"]] == NAMES
    assert [(path["row"], path["kind"], path["blocks"]) for path in found["paths"][2:]] == [
        ("query", "linear", [1]),
        ("cut", "cut", [1]),
        ("head", "linear", []),
    ]
    assert [path["on"] for path in found["paths"]] == [True, True, False, False, False]


def test_shares_scores_and_changes_are_counted_by_hand() -> None:
    history = [
        record(NAMES[:2], NAMES[:3], step=0, scores={NAMES[0]: 5.0}),
        record(NAMES[1:3], NAMES[:3], step=10, scores={NAMES[0]: 0.5, NAMES[2]: None}),
        record(NAMES[1:2], NAMES[:3], step=20),
    ]
    found = shown(history)
    assert [path["share"] for path in found["paths"]] == pytest.approx([1 / 3, 1, 1 / 3])
    assert [path["score"] for path in found["paths"]] == [1.0, 1.0, 1.0]  # of the last search
    assert [each["on"] for each in found["moments"]] == [[0, 1], [1, 2], [1]]
    assert [each["gained"] for each in found["moments"]] == [[], [2], []]
    assert [each["lost"] for each in found["moments"]] == [[], [0], [2]]
    assert found["thinned"] is None
    assert shown(history[:2])["paths"][2]["score"] is None


def test_ranks_come_from_the_search_the_files_or_from_paths_of_the_same_kind() -> None:
    searched = SearchRecord(search=0, proxy="snip", step=0, chosen=NAMES[:2], ranks={NAMES[0]: 3, NAMES[1]: 0})
    by_search = shown([searched], {NAMES[0]: 8, NAMES[1]: 8})
    assert [path["r"] for path in by_search["paths"]] == [3, None]
    files = shown([record(NAMES[:2], NAMES[:4])], {NAMES[0]: 4, NAMES[1]: 8, NAMES[3]: 2})
    assert [path["r"] for path in files["paths"]] == [4, 8, None, 2]  # two ranks among projections: not known
    same = shown([record(NAMES[:2], NAMES[:4])], {NAMES[0]: 4})
    assert [path["r"] for path in same["paths"]] == [4, 4, 4, None]


def test_the_map_has_the_ranks_at_the_end_and_how_often_each_was_on() -> None:
    history = [record(NAMES[:2], NAMES[:3]), record(NAMES[1:3], NAMES[:3], step=10)]
    heat = shown(history, dict.fromkeys(NAMES[:3], 4))["heat"]
    assert (heat["rows"], heat["columns"], heat["known"]) == (["query", "value"], [0, 1], True)
    assert str(heat["ranks"]) == "[[0.0, 4.0], [4.0, nan]]"
    assert str(heat["share"]) == "[[0.5, 0.5], [1.0, nan]]"
    unknown = shown(history[:1])["heat"]
    assert (unknown["known"], unknown["share"]) == (False, None)
    assert str(unknown["ranks"]) == "[[1.0, 0.0], [1.0, nan]]"


def test_a_merged_span_takes_its_cells_from_its_halves() -> None:
    history = [edits([merge("0", "1")], layers(0, 1, 2), layers("0-1", 2))]
    heat = shown(history, dict.fromkeys(layers(0, 1, 2), 4))["heat"]
    assert (heat["rows"], heat["ranks"]) == (["layer"], [[4.0, 4.0, 4.0]])


def test_a_run_without_records_is_one_moment_of_what_is_on() -> None:
    (moment,) = moments_of([], NAMES[:2], 123)
    assert (moment.title, set(moment.on), moment.enabled) == ("throughout", set(NAMES[:2]), 123)
    found = paths_shown([], [moment], {NAMES[0]: 4})
    assert [(path["name"], path["share"], path["r"]) for path in found["paths"]] == [(NAMES[0], 1, 4), (NAMES[1], 1, 4)]
    assert moments_of([], [], 123) == []
    assert paths_shown([], [], {}) == {"paths": [], "moments": [], "thinned": None, "heat": None}


@pytest.mark.parametrize("count", [1, 2, MOST_MOMENTS, MOST_MOMENTS + 1, 2 * MOST_MOMENTS, 7919])
def test_what_is_thinned_keeps_its_ends_and_its_order(count: int) -> None:
    history = [record(NAMES[:1], NAMES[:1], step=step) for step in range(count)]
    found = scores_over_time(history)
    assert found is not None
    steps = found["steps"]
    assert (steps[0], steps[-1], len(steps)) == (0, count - 1, min(count, MOST_MOMENTS))
    assert steps == sorted(set(steps))
    gaps = {after - before for before, after in itertools.pairwise(steps)}
    assert max(gaps, default=0) - min(gaps, default=0) <= 1
    assert [len(found[name][0]) for name in ("low", "middle", "high")] == [len(steps)] * 3


def test_scores_are_a_range_over_blocks_without_the_warm_up() -> None:
    rows = paths(3, "query")
    early = record(rows, rows, proxy="constant")
    values: list[list[float | None]] = [[1, 9, 4], [2, None, 8]]
    late = [
        record(rows, rows, step=5 * number, scores=dict(zip(rows, each, strict=True)))
        for number, each in enumerate(values, start=1)
    ]
    found = scores_over_time([early, *late])
    assert found is not None
    assert (found["low"], found["middle"], found["high"]) == ([[1, 2]], [[4, 5]], [[9, 8]])
    assert (found["steps"], found["warm_up"], found["not_finite"]) == ([5, 10], 1, 1)
    assert scores_over_time([record(rows, rows, scores=dict.fromkeys(rows))]) is None
    assert scores_over_time([]) is None


def test_the_overlap_is_how_much_of_a_choice_stays() -> None:
    rows = paths(4, "query")
    found = overlap_over_time([record(rows[start : start + 2], rows, step=10 * start) for start in (0, 1, 1)])
    assert found is not None
    assert (found["values"], found["mean"]) == ([0.5, 1.0], 0.75)
    assert overlap_over_time([record(rows, rows)]) is None
    assert overlap_over_time([]) is None


def test_singular_values_over_the_epochs_and_of_the_adapter(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert spectra_shown(run, []) is None
    long = [float(DIRECTIONS + 5 - place) for place in range(DIRECTIONS + 5)]
    lines = [{"epoch": 0.5, "step": 3, "paths": {"layers.1.layer": [2.0, 1.0], "layers.0.layer": long}}]
    run.spectra.write_text("".join(json.dumps(line) + "\n" for line in lines))
    weights = [Weight("layers.0.query", 2, 8, (3.0, 1.0)), Weight("layers.1.query", 2, 8, (0.0, 0.0))]
    found = spectra_shown(run, weights)
    assert found is not None
    first, now = found["moments"]
    assert first["label"] == "epoch 0.5, step 3"
    assert list(first["paths"].items()) == [("layers.0.layer", long[:DIRECTIONS]), ("layers.1.layer", [2.0, 1.0])]
    assert now["paths"] == {"layers.0.query": [3.0, 1.0]}, "a path that was never trained has none"


def test_gradients_are_shown_where_both_were_recorded(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert gradients_shown(run) is None
    records = epochs_of_gradients(2, 3)
    run.gradients.write_text("".join(json.dumps(each) + "\n" for each in records))
    found = gradients_shown(run)
    assert found is not None
    assert (found["blocks"], found["epochs"]) == ([0, 1, 2], [1.0, 2.0])
    for each in records:
        for block in each["blocks"].values():
            del block["linear"]
    run.gradients.write_text("".join(json.dumps(each) + "\n" for each in records))
    assert gradients_shown(run) is None


def test_damaged_gradients_are_not_taken_for_none(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.gradients.write_text("nonsense\n")
    with pytest.raises(ValueError, match=r"gradients\.jsonl, line 1 is not"):
        gradients_shown(run)
