"""The structure between edits: replayed from hand-made records and from a real run, and legible as a diagram."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from tests.models import class_batches, tiny_bert
from tests.report.edits import edited_history, edits, inject, layers, lora, merge
from tests.report.histories import paths, record

import rankwise
from rankwise import Disable, Enable, Inject, Merge
from rankwise.report import read_history, structures
from rankwise.report.history import History
from rankwise.report.structure import Bar, words
from rankwise.rules.edits import Edit
from rankwise.rules.records import edits as edits_of
from rankwise.rules.records import to_lines


def spans(history: History) -> list[list[tuple[int, int]]]:
    return [[(bar.first, bar.last) for bar in each.bars if bar.kind == "layer"] for each in structures(history)]


def real_history(**fields: object) -> History:
    """What an encoder of four blocks writes down in eight steps."""
    options = {"r": 4, "edit_unit": "steps", "total_steps": 8, "merges": 1, "injections": 1, **fields}
    model = get_peft_model(tiny_bert(4), rankwise.Lor2cConfig(**options))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model.train()
    for batch in class_batches(8):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return rankwise.history(model)


def test_a_row_for_the_start_and_one_for_each_edit() -> None:
    found = structures(edited_history())
    assert [(each.step, each.title) for each in found] == [
        (0, "start"),
        (10, "merge 1 + 2"),
        (10, "inject 5"),
        (20, "merge 1-2 + 3"),
        (30, "no merge possible"),
    ]
    assert [each.enabled for each in found] == [None, 500, 600, 500, 500]
    assert spans(edited_history()) == [
        [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5)],
        [(0, 0), (1, 2), (3, 3), (4, 4), (5, 5)],
        [(0, 0), (1, 2), (3, 3), (4, 4)],
        [(0, 0), (1, 3), (4, 4)],
        [(0, 0), (1, 3), (4, 4)],
    ]
    assert [bar for bar in found[2].bars if bar.kind == "linear"] == [Bar(5, 5, "linear", "q, v")]


def test_scores_and_what_the_next_edit_changes_stand_where_it_chose() -> None:
    start, *_, last = structures(edited_history())
    assert [(bar.score, bar.edited) for bar in start.bars[:4]] == [
        (None, False),
        (0.25, True),
        (0.5, True),
        (0.5, False),
    ]
    assert start.metric == "sfs"
    assert {bar.score for bar in last.bars} == {None}
    assert not any(bar.edited for bar in last.bars)
    assert last.metric is None


def test_a_frozen_path_stays_and_a_disabled_one_goes() -> None:
    before, after = layers(0, 1, 2), layers(2)
    both = [merge("0", "1"), Disable("layers.0-1.layer")]
    frozen = structures([edits(both, before, after, frozen=50)])[1]
    assert frozen.title == "merge 0 + 1, freeze 0-1"
    assert [(bar.first, bar.last, bar.frozen) for bar in frozen.bars] == [(0, 1, True), (2, 2, False)]
    gone = structures([edits(both, before, after)])[1]
    assert gone.title == "merge 0 + 1, switch off 0-1"
    assert [(bar.first, bar.last) for bar in gone.bars] == [(2, 2)]
    back = edits([Enable("layers.0-1.layer")], after, layers("0-1", 2), step=20)
    again = structures([edits(both, before, after, frozen=50), back])[2]
    assert (again.title, [bar.frozen for bar in again.bars]) == ("switch on 0-1", [False, False])


@pytest.mark.parametrize(
    ("made", "chosen", "said"),
    [
        ([inject(2)], lora(2), "inject 2"),
        ([inject(2)], lora(1), "delete 2"),
        ([merge("0", "1"), inject(2)], lora(2), "merge 0 + 1, inject 2"),
        ([Disable("layers.1.query")], [], "switch off 1.query"),
        ([], [], "no merge possible"),
    ],
)
def test_what_was_done_in_words(made: list[Edit], chosen: list[str], said: str) -> None:
    assert words(edits(made, [], chosen)) == said


def test_a_search_between_two_edits_gets_a_row_of_its_own() -> None:
    names = paths(2, "query", "layer")
    history = [
        record(names[:3], names, step=5),
        edits([Disable(names[0])], names[:3], names[1:3], step=10),
        record(names[2:], names, step=15),
        edits([Enable(names[0])], names[2:], [names[0], *names[2:]], step=20),
    ]
    found = structures(history)
    assert [(each.step, each.title) for each in found] == [
        (10, "before the edit"),
        (10, "switch off 0.query"),
        (20, "before the edit"),
        (20, "switch on 0.query"),
    ]


def test_no_edit_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no edit"):
        structures([record([], [])])


def test_a_real_run_is_replayed(tmp_path: Path) -> None:
    history = real_history()
    (tmp_path / "history.jsonl").write_text(to_lines(history), encoding="utf-8")
    assert read_history(tmp_path / "history.jsonl") == history
    found = structures(history)
    assert len(found) == 3
    assert [bar.last - bar.first for bar in found[0].bars] == [0] * 4
    assert sorted(bar.last - bar.first for bar in found[1].bars) == [0, 0, 1]
    assert [bar.label for bar in found[2].bars if bar.kind == "linear"] == ["q, v"]
    merged, injected = (each.edits[0] for each in edits_of(history))
    assert isinstance(merged, Merge)
    assert isinstance(injected, Inject)
    assert found[1].title == f"merge {merged.first.split('.')[1]} + {merged.second.split('.')[1]}"
    assert found[2].title == f"inject {injected.path.split('.')[1]}"


@pytest.mark.parametrize("fields", [{"freeze_merged": True, "injections": 0}, {"inject_targets": [], "merges": 0}])
def test_the_ablations_are_told_apart(fields: dict[str, object]) -> None:
    after = structures(real_history(**fields))[1]
    assert ("freeze" in after.title, "delete" in after.title) == ("freeze_merged" in fields, "inject_targets" in fields)
    assert [bar.frozen for bar in after.bars].count(True) == ("freeze_merged" in fields)
    assert len(after.bars) == 3
