from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rankwise.tasks import DataSpec

OWN = {"train_file": "a.csv", "text_columns": ["text"], "label_column": "topic"}


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "mrpc"},
        {"task": "mrpc", "data_dir": "data"},
        {"task": "text", "train_file": "a.txt"},
        {"task": "text", "train_file": "a.csv", "text_columns": ["story"]},
        {"task": "docstrings"},
        OWN,
        OWN | {"kind": "regression"},
    ],
)
def test_what_is_allowed(fields: dict[str, Any]) -> None:
    DataSpec(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "sst"}, "task='sst' is unknown, did you mean 'sst2'"),
        ({}, r"train_file \(or dataset\), text_columns, label_column missing"),
        ({"train_file": "a.csv", "text_columns": ["text"]}, "label_column missing"),
        ({"task": "mrpc", "label_column": "label"}, "has its own columns"),
        ({"task": "text"}, "task='text' is not on the hub: give train_file"),
        ({"task": "text", "train_file": "a.csv", "text_columns": ["a", "b"]}, "reads one column"),
        ({"task": "mrpc", "validation_file": "a.csv"}, "go with train_file"),
        ({"task": "mrpc", "max_lenght": 3}, "max_lenght"),
        ({"task": "mrpc", "dev_fraction": 1.0}, "dev_fraction"),
        ({"task": "mrpc", "max_train_samples": 0}, "max_train_samples"),
        (OWN | {"text_columns": ["a", "b", "c"]}, "text_columns"),
    ],
)
def test_what_is_refused_and_in_which_words(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataSpec(**fields)


def test_the_dev_split_has_the_defaults_of_the_study() -> None:
    spec = DataSpec(task="mrpc")
    assert (spec.dev_fraction, spec.dev_max, spec.split_seed) == (0.1, 1000, 0)
