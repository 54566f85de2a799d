"""Records as data: written and read back unchanged, and anything else refused with its place and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rankwise.rules.edits import Disable, Enable, Inject, Merge
from rankwise.rules.records import EditRecord, Record, SearchRecord, edits, from_lines, record_of, searches, to_lines

WRITTEN = Path(__file__).parents[1] / "data" / "version-0.1"
FILES = sorted(WRITTEN.rglob("search_history.jsonl"))
NAMES = ["layers.0.layer", "layers.1.layer", "layers.2.layer"]
COUNTS = {"enabled": 64, "contributing": 96, "resident": 128, "frozen": 32, "head": 34}

SEARCH = SearchRecord(
    step=20,
    search=2,
    how="online",
    proxy="snip",
    score_on="factors",
    scores={"layers.0.query": 0.1, "layers.1.in": 2.5, "layers.1.query": None},
    unscored=["layers.1.in"],
    chosen=["layers.1.in"],
    switched_on=["layers.1.in"],
    switched_off=["layers.0.query"],
    counts=COUNTS,
    ranks={"layers.1.in": 4},
    budget=0.25,
    unspent="8 of 72 parameters: the cheapest path takes 16",
    seconds=0.125,
    tap_seconds=0.5,
)
EDIT = EditRecord(
    step=10,
    due="merge",
    edits=[
        Merge(NAMES[0], NAMES[1], survivor=NAMES[1]),
        Merge(NAMES[0], NAMES[1]),
        Inject(NAMES[2]),
        Enable("layers.2.query"),
        Disable("layers.2.value"),
    ],
    metric="sfs",
    scores={NAMES[0]: 0.5, NAMES[1]: 1, NAMES[2]: None},
    unscored=[NAMES[2]],
    before=NAMES,
    chosen=["layers.0-1.layer", "layers.2.query"],
    counts=COUNTS,
    seconds=0.25,
    measured=[0.7, None],
)
SKIPPED = EditRecord(step=30, due="inject", edits=[], before=NAMES, chosen=NAMES)
LEAST = SearchRecord(step=0, search=0, proxy="constant")
HISTORY = [LEAST, EDIT, SEARCH, SKIPPED]


def line_of(record: Record, **changes: Any) -> str:
    return json.dumps({**record.to_dict(), **changes})


def line_without(record: Record, field: str) -> str:
    return json.dumps({key: value for key, value in record.to_dict().items() if key != field})


def refused(line: str) -> str:
    """Return why a line is refused that follows two good ones; the message has to name the file and the line."""
    with pytest.raises(ValueError, match=r"^runs/a\.jsonl, line 3 is not a search or an edit of rankwise \(") as caught:
        from_lines(to_lines([SEARCH, EDIT]) + line + "\n" + to_lines([SKIPPED]), Path("runs/a.jsonl"))
    return str(caught.value)


# What comes back.


def test_a_history_comes_back_as_it_was() -> None:
    text = to_lines(HISTORY)
    assert len(text.splitlines()) == len(HISTORY)
    assert text.endswith("}\n")
    back = from_lines(text, "here")
    assert back == HISTORY
    assert [type(record) for record in back] == [SearchRecord, EditRecord, SearchRecord, EditRecord]
    assert to_lines(back) == text
    assert from_lines(to_lines([]), "here") == []


@pytest.mark.parametrize("record", HISTORY)
def test_a_record_comes_back_from_its_dictionary(record: Record) -> None:
    assert record_of(record.to_dict()) == record
    assert record_of(json.loads(json.dumps(record.to_dict()))) == record


def test_what_is_written_is_plain_json() -> None:
    search, edit = (json.loads(line) for line in to_lines([SEARCH, EDIT]).splitlines())
    assert (search["search"], search["scores"]["layers.1.query"]) == (2, None)
    assert "edits" not in search
    assert edit["edits"] == [
        {"edit": "Merge", "first": NAMES[0], "second": NAMES[1], "survivor": NAMES[1]},
        {"edit": "Merge", "first": NAMES[0], "second": NAMES[1], "survivor": None},
        {"edit": "Inject", "path": NAMES[2]},
        {"edit": "Enable", "path": "layers.2.query"},
        {"edit": "Disable", "path": "layers.2.value"},
    ]
    assert (edit["how"], edit["due"], edit["skipped"]) == ("edit", "merge", False)
    assert SKIPPED.to_dict()["skipped"] is True


@pytest.mark.parametrize("file", FILES, ids=lambda file: "-".join(file.relative_to(WRITTEN).parts[:-1]))
def test_every_line_of_version_0_1_is_read_and_written_back_with_the_same_fields(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    history = from_lines(text, file)
    assert from_lines(to_lines(history), file) == history
    for record, line in zip(history, text.splitlines(), strict=True):
        given, found = json.loads(line), record.to_dict()
        assert {name: found[name] for name in given} == given
        assert not any(found[name] for name in found.keys() - given.keys())  # what later versions added is empty


def test_version_0_1_has_both_kinds() -> None:
    history = [record for file in FILES for record in from_lines(file.read_text(encoding="utf-8"), file)]
    assert searches(history)
    assert edits(history)
    assert len(searches(history)) + len(edits(history)) == len(history)


# What is refused.


@pytest.mark.parametrize("line", ["[1, 2]", "3", "null", '"search"', "true"])
def test_what_is_no_object_is_refused(line: str) -> None:
    assert f"a record is a JSON object, got {json.loads(line)!r}" in refused(line)


@pytest.mark.parametrize("line", ["", "{", "hello", '{"step": 3', '{"step": 3} {"step": 4}', "[" * 100_000])
def test_what_is_no_json_is_refused(line: str) -> None:
    refused(line)


@pytest.mark.parametrize(
    ("line", "kind", "field"),
    [
        (line_of(SEARCH, colour="red"), "SearchRecord", "colour"),
        (line_of(SEARCH, due="merge"), "SearchRecord", "due"),
        (line_of(SEARCH, skipped=False), "SearchRecord", "skipped"),
        (line_of(EDIT, colour="red"), "EditRecord", "colour"),
        (line_of(EDIT, search=1), "EditRecord", "search"),
        (line_of(SEARCH, edits=[]), "EditRecord", "budget"),  # the first in order of those that a search has
    ],
)
def test_an_unknown_field_is_named(line: str, kind: str, field: str) -> None:
    assert f"{kind} has no field '{field}'" in refused(line)


@pytest.mark.parametrize(
    ("line", "field"),
    [
        *((line_without(SEARCH, field), field) for field in ("step", "search", "proxy")),
        *((line_without(EDIT, field), field) for field in ("step", "before")),
    ],
)
def test_a_missing_field_is_named(line: str, field: str) -> None:
    said = refused(line)
    assert "lacks a field" in said
    assert f"'{field}'" in said.partition("):")[0]


WRONG: dict[str, list[Any]] = {
    "step": ["3", 3.0, True, None],
    "search": ["0", 1.5, False, None],
    "how": [3, None],
    "proxy": [3, None, ["snip"]],
    "score_on": [3, None],
    "scores": [[], None, "a", {"a": "1"}, {"a": True}, {"a": [1.0]}],
    "unscored": ["a", None, {}, [1], [None], [["a"]]],
    "chosen": ["a", None, {}, [1], [None], [["a"]]],
    "switched_on": ["a", None, {}, [1]],
    "switched_off": ["a", None, {}, [1]],
    "counts": [[], None, 3, {"enabled": "3"}, {"enabled": 1.5}, {"enabled": None}, {"enabled": True}],
    "ranks": [[], None, 3, {"a": "3"}, {"a": 1.5}, {"a": None}, {"a": True}],
    "budget": ["0.25", True, [0.25]],
    "unspent": [3, None],
    "seconds": ["1", None, True],
    "tap_seconds": ["1", None, True],
}
WRONG_EDIT: dict[str, list[Any]] = {
    **{name: WRONG[name] for name in ("step", "how", "scores", "unscored", "chosen", "counts", "seconds")},
    "edits": [None, {}, "Merge", 3],
    "before": ["a", None, {}, [1], [None]],
    "due": [3, None],
    "metric": [3, ["sfs"]],
    "measured": [0.5, None, {}, ["0.5"], [True]],
}


def test_the_wrong_types_below_are_of_all_fields() -> None:
    assert WRONG.keys() == LEAST.to_dict().keys()
    assert WRONG_EDIT.keys() == SKIPPED.to_dict().keys() - {"tap_seconds", "skipped"}


@pytest.mark.parametrize(
    ("record", "field", "value"),
    [
        *((SEARCH, field, value) for field, values in WRONG.items() for value in values),
        *((EDIT, field, value) for field, values in WRONG_EDIT.items() for value in values),
    ],
)
def test_a_wrong_type_is_refused_with_its_field(record: Record, field: str, value: object) -> None:
    assert f"(field '{field}' has " in refused(line_of(record, **{field: value}))


@pytest.mark.parametrize("record", [SEARCH, EDIT])
@pytest.mark.parametrize("score", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400])
def test_a_score_that_is_no_finite_number_is_refused(record: Record, score: str) -> None:
    line = line_of(record, scores={"layers.0.query": 1.0, "layers.1.query": 99}).replace("99", score)
    said = refused(line)
    assert "(field 'scores' gives 'layers.1.query' the score" in said
    assert "no finite number" in said
    assert len(said) < 400


@pytest.mark.parametrize(("record", "field"), [(SEARCH, "step"), (SEARCH, "search"), (EDIT, "step")])
def test_a_negative_count_is_refused(record: Record, field: str) -> None:
    assert f"(field '{field}' is -1, which is no count" in refused(line_of(record, **{field: -1}))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"edit": "Enable"}, "half an edit"),
        ({"edit": "Inject"}, "half an edit"),
        ({"edit": "Merge"}, "half an edit"),
        ({"edit": "Merge", "first": "a"}, "half an edit"),
        ({"edit": "Merge", "second": "b", "survivor": "b"}, "half an edit"),
        ({"edit": "Split", "path": "a"}, "no edit"),
        ({"edit": "merge", "first": "a", "second": "b"}, "no edit"),
        ({"edit": None, "path": "a"}, "no edit"),
        ({"edit": ["Merge"], "first": "a", "second": "b"}, "no edit"),
        ({"edit": {}, "path": "a"}, "no edit"),
        ({"path": "a"}, "no edit"),
        ({}, "no edit"),
        ("Enable", "no edit"),
        (None, "no edit"),
        (["Enable", "a"], "no edit"),
        ({"edit": "Enable", "path": "a", "survivor": "a"}, "no edit"),
        ({"edit": "Merge", "first": "a", "second": "b", "third": "c"}, "no edit"),
        ({"edit": "Enable", "path": None}, "an edit of no path"),
        ({"edit": "Disable", "path": 3}, "an edit of no path"),
        ({"edit": "Inject", "path": ["a"]}, "an edit of no path"),
        ({"edit": "Merge", "first": "a", "second": None}, "an edit of no path"),
        ({"edit": "Merge", "first": "a", "second": "b", "survivor": 1}, "an edit of no path"),
    ],
)
def test_what_is_no_whole_edit_is_refused(edit: object, said: str) -> None:
    good = {"edit": "Enable", "path": "layers.0.layer"}
    found = refused(line_of(EDIT, edits=[good, edit]))
    assert f"(field 'edits' holds {said}: {edit!r}" in found


# What a record tells.


@pytest.mark.parametrize("record", HISTORY)
def test_a_field_is_read_by_its_name_in_brackets(record: Record) -> None:
    names = record.to_dict().keys() - {"skipped"}
    assert {"step", "scores", "chosen", "counts"} < names
    assert all(record[name] is getattr(record, name) for name in names)


@pytest.mark.parametrize("name", ["colour", "rows", "to_dict", "LABEL", "__class__", "due"])
def test_what_is_no_field_is_no_key(name: str) -> None:
    with pytest.raises(KeyError, match=f"^'{name}'$"):
        SEARCH[name]


def test_a_search_has_a_row_for_each_path() -> None:
    shared = {"step": 20, "how": "online", "score_name": "snip"}
    assert SEARCH.rows() == [
        {**shared, "path": "layers.0.query", "kind": "linear", "score": 0.1, "enabled": False},
        {**shared, "path": "layers.1.in", "kind": "in", "score": 2.5, "enabled": True},
        {**shared, "path": "layers.1.query", "kind": "linear", "score": None, "enabled": False},
    ]
    assert LEAST.rows() == []


def test_an_edit_has_a_row_for_each_path_that_was_scored_or_is_on() -> None:
    rows = EDIT.rows()
    assert {(row["step"], row["how"], row["score_name"]) for row in rows} == {(10, "edit", "sfs")}
    assert [(row["path"], row["kind"], row["score"], row["enabled"]) for row in rows] == [
        (NAMES[0], "layer", 0.5, False),
        (NAMES[1], "layer", 1, False),
        (NAMES[2], "layer", None, False),
        ("layers.0-1.layer", "layer", None, True),
        ("layers.2.query", "linear", None, True),
    ]
    assert {(row["score_name"], row["enabled"]) for row in SKIPPED.rows()} == {(None, True)}


def test_paths_without_a_score_of_their_own_are_among_the_paths_once() -> None:
    record = SearchRecord(step=0, search=0, proxy="snip", scores={"b": 1.0}, unscored=["c", "b"], chosen=["a", "c"])
    assert record.paths == ["b", "c", "a"]


def test_searches_and_edits_are_told_apart() -> None:
    assert searches(HISTORY) == [LEAST, SEARCH]
    assert edits(HISTORY) == [EDIT, SKIPPED]
    assert [record.skipped for record in edits(HISTORY)] == [False, True]


def test_a_record_stays_as_it_was_written() -> None:
    with pytest.raises(AttributeError, match="cannot assign to field 'step'"):
        SEARCH.step = 3  # type: ignore[misc]
    given = SEARCH.to_dict()
    given["chosen"].clear()
    given["scores"].clear()
    assert SEARCH.chosen == ["layers.1.in"]
    assert len(SEARCH.scores) == 3
