from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rankwise.rules.edits import Merge
from rankwise.rules.records import EditRecord, SearchRecord
from rankwise.runs.dryrun import tiny_tokenizer
from rankwise.runs.training.announce import data_lines, told
from rankwise.tasks import DataSpec, load_task


def test_a_search_is_told_in_a_line_the_best_first() -> None:
    scores: dict[str, float | None] = {f"layers.{n}.value": float(n) for n in range(9)} | {"layers.9.value": None}
    record = SearchRecord(
        step=23,
        search=1,
        proxy="grad_norm",
        how="online",
        scores=scores,
        chosen=[f"layers.{n}.value" for n in range(1, 9)],
        switched_on=["layers.1.value"],
        switched_off=["layers.0.value", "layers.9.value"],
        seconds=4.26,
    )
    assert told(record) == (
        "step 23: search 2 (online, 4.3 s) chose 8 of 10 paths (+1, -2): layers.8.value, layers.7.value, "
        "layers.6.value, layers.5.value, layers.4.value, layers.3.value and 2 more"
    )


def test_a_choice_of_ranks_is_told_the_largest_first() -> None:
    ranks = {f"layers.{n}.value": n for n in range(1, 8)}
    record = SearchRecord(
        step=0,
        search=0,
        proxy="newton",
        how="probe",
        scores=dict.fromkeys([*ranks, "layers.8.value"], 0.0),
        chosen=list(ranks),
        ranks=ranks,
        unspent="12 parameters: no component costs so little",
        seconds=2.04,
    )
    assert told(record) == (
        "ranks: chosen in 2.0 s for 7 of 8 paths: layers.7.value 7, layers.6.value 6, layers.5.value 5, "
        "layers.4.value 4, layers.3.value 3, layers.2.value 2 and 1 more; unspent 12 parameters: no component costs "
        "so little"
    )


def test_an_edit_is_told_with_the_loss_around_it_where_there_is_one() -> None:
    edit = Merge("layers.4.layer", "layers.5.layer")
    record = EditRecord(step=8, edits=[edit], before=[], due="merge", counts={"enabled": 1200}, measured=[0.5, 0.75])
    assert told(record) == "step 8: merge 4 + 5; 1,200 parameters on; dev loss 0.5000 -> 0.7500"
    unmeasured = EditRecord(step=8, edits=[], before=[], due="inject", counts={"enabled": 7}, measured=[None, None])
    assert told(unmeasured) == "step 8: no inject possible; 7 parameters on"


def pair(label: Any, words: int = 2) -> dict[str, Any]:
    return {"sentence1": "bar " * words, "sentence2": "dot", "label": label}


def choice(premise: int, first: int = 1) -> dict[str, Any]:
    """Two sequences: three special tokens, the premise, a word of the question, and a choice."""
    return {"premise": "bar " * premise, "question": "kar", "choice1": "dot " * first, "choice2": "dun", "label": 0}


def answer(words: int, prompt: int = 2) -> dict[str, Any]:
    """A row of ``2 + prompt + words`` tokens."""
    return {"prompt": "bar " * prompt, "completion": "dot " * words}


@pytest.mark.parametrize(
    ("task", "rows", "more", "line"),
    [
        # [CLS] bar bar [SEP] dot [SEP], and one of 9 + 1 + 3 that is cut at 10
        (
            "mrpc",
            [pair(1), pair(1), pair(1), pair(0, 9)],
            {"max_length": 10},
            "4 rows of 6 tokens (median; 10 the longest); 1 cut at that length (25.0%); labels equivalent 3, "
            "not_equivalent 1",
        ),
        (
            "mrpc",
            [pair(1), pair(0), pair(0), {**pair(1), "sentence2": ""}],
            {"missing": "drop"},
            "3 rows of 6 tokens (median; 6 the longest); 1 left out, a text or label missing (33.3%); labels "
            "not_equivalent 2, equivalent 1",
        ),
        ("stsb", [pair(0.5), pair(5.0), pair(2.0, 4)], {}, "3 rows of 6 tokens (median; 8 the longest)"),
        # both sequences of the second row are cut, one of the third: two rows of three
        (
            "copa",
            [choice(2), choice(9), choice(2, 5)],
            {"max_length": 9},
            "3 rows of 9 tokens (median; 9 the longest); 2 cut at that length (66.7%)",
        ),
        # 5 tokens, 5, 5, 5; 13 of which 8 stay; nothing of the answer among the first 8
        (
            "chat",
            [*[answer(1)] * 4, answer(9), answer(1, 10)],
            {"max_length": 8, "allow_cut_answers": True},
            "5 rows of 5 tokens (median; 8 the longest); 2 cut at that length (33.3%); 1 answers cut (16.7%); 1 left "
            "out, nothing to learn (16.7%)",
        ),
        # 5 + 3 in one sequence of 8 and so on: a row fewer is learned than was read, four fill three sequences
        (
            "chat",
            [*[answer(1)] * 3, answer(9), answer(1, 10)],
            {"max_length": 8, "allow_cut_answers": True, "packing": True},
            "4 rows of 5 tokens (median; 8 the longest) in 4 packed sequences; 2 cut at that length (40.0%); 1 answers "
            "cut (20.0%); 1 left out, nothing to learn (20.0%)",
        ),
        (
            "chat",
            [*[answer(1)] * 4, answer(9)],
            {"max_length": 13, "packing": True},
            "5 rows of 5 tokens (median; 13 the longest) in 3 packed sequences",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:split 'train'")
def test_a_split_is_a_line(tmp_path: Path, task: str, rows: list[Any], more: dict[str, Any], line: str) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_task(DataSpec(task=task, train_file=file, dev_fraction=0, **more), tiny_tokenizer())
    assert list(data_lines(data)) == [f"train: {line}"]
