"""A digest is of what rows hold, not of how they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, LargeList, List, Value, concatenate_datasets

from rankwise.tasks.digest import digest_of

ROWS: dict[str, list[Any]] = {
    "input_ids": [[2, n, n + 1, 3][: 2 + n % 3] for n in range(2500)],
    "labels": [n % 3 for n in range(2500)],
}
BACKWARDS = [*reversed(range(2500))]


def rows(**changed: list[Any]) -> Dataset:
    return Dataset.from_dict({**ROWS, **changed})


def test_pieces_files_and_the_order_of_columns_do_not_matter(tmp_path: Path) -> None:
    whole = rows()
    whole.to_parquet(str(tmp_path / "rows.parquet"))
    same = [
        concatenate_datasets([whole.select(range(700)), whole.select(range(700, 2500))]),
        Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache")),
        whole.select(BACKWARDS).select(BACKWARDS),
        whole.select_columns(["labels", "input_ids"]),
        whole.with_format("torch"),
    ]
    assert {digest_of(each) for each in same} == {digest_of(whole)}


@pytest.mark.parametrize(
    "other",
    [
        rows(labels=[*ROWS["labels"][:-1], 2]),
        rows(input_ids=[[2, 0, 1], [3], *ROWS["input_ids"][2:]]),  # as many tokens, cut at another place
        rows().select(range(2499)),
        rows().select([1, 0, *range(2, 2500)]),
        rows().rename_column("labels", "label"),
    ],
    ids=["a label", "a border", "a row less", "another order", "a name"],
)
def test_what_rows_hold_matters(other: Dataset) -> None:
    assert digest_of(other) != digest_of(rows())


def test_the_width_of_numbers_does_not_matter() -> None:
    kinds = [(List(Value("int64")), "int64"), (List(Value("int32")), "int8"), (LargeList(Value("int64")), "int16")]
    features = [Features({"input_ids": tokens, "labels": Value(label)}) for tokens, label in kinds]
    assert len({digest_of(rows().cast(each)) for each in features}) == 1
    scores = [
        Dataset.from_dict({"labels": [0.5, None]}, features=Features({"labels": Value(f"float{bits}")}))
        for bits in (32, 64)
    ]
    assert digest_of(scores[0]) == digest_of(scores[1])


def test_each_split_counts_with_its_place() -> None:
    one, two = rows().select(range(9)), rows().select(range(9, 12))
    assert len({digest_of(one, None), digest_of(None, one), digest_of(one, two), digest_of(two, one)}) == 4


def test_rows_of_several_sequences_and_of_text() -> None:
    pairs = Dataset.from_dict({"input_ids": [[[1, 2], [3]], [[4], [5, 6]]], "text": ["a", "b"]})
    moved = Dataset.from_dict({"input_ids": [[[1], [2, 3]], [[4], [5, 6]]], "text": ["a", "b"]})
    other = Dataset.from_dict({"input_ids": [[[1, 2], [3]], [[4], [5, 6]]], "text": ["a", "c"]})
    assert len({digest_of(pairs), digest_of(moved), digest_of(other)}) == 3
