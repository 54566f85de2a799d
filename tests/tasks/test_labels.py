from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from rankwise.tasks import TASKS, DataSpec
from rankwise.tasks.labels import add_labels, describe_files
from rankwise.tasks.read import Source

OWN = DataSpec(train_file=Path("a.csv"), text_columns=("text",), label_column="topic")


def source(column: str, values: list[Any], *texts: str) -> Source:
    return Source(Dataset.from_dict({text: ["x"] * len(values) for text in texts} | {column: values}), "a.csv")


def own(values: list[Any]) -> Source:
    return source("topic", values, "text")


def cb(values: list[Any]) -> Source:
    return source("label", values, "premise", "hypothesis")


def stsb(values: list[Any]) -> Source:
    return source("label", values, "sentence1", "sentence2")


@pytest.mark.parametrize("values", [[2, 0, 1], ["neutral", "entailment", "contradiction"]])
def test_a_class_is_its_number_or_its_name(values: list[Any]) -> None:
    rows = add_labels(cb(values), TASKS["cb"])
    assert rows["labels"][:] == [2, 0, 1]
    assert rows.column_names == ["premise", "hypothesis", "labels"]


def test_boolq_takes_truth_values() -> None:
    assert add_labels(source("label", [True, False], "question", "passage"), TASKS["boolq"])["labels"][:] == [1, 0]


@pytest.mark.parametrize("value", [-1, 3, "neutrall", None])
def test_a_class_outside_the_range_is_named_with_what_is_allowed(value: Any) -> None:
    values = ["neutral", value] if isinstance(value, str) else [0, value]
    message = r"a\.csv, row 2: label={!r} is outside .* 0 \(entailment\), 1 \(contradiction\), 2 \(neutral\)"
    with pytest.raises(ValueError, match=message.format(value)):
        add_labels(cb(values), TASKS["cb"])


@pytest.mark.parametrize("value", [-0.5, 5.1, float("nan"), None])
def test_a_score_outside_the_range_is_named_with_what_is_allowed(value: float | None) -> None:
    with pytest.raises(ValueError, match=r"a\.csv, row 2: label=.* is not a number from 0 to 5"):
        add_labels(stsb([3.8, value]), TASKS["stsb"])


def test_a_list_is_no_label() -> None:
    for optional in (False, True):
        with pytest.raises(ValueError, match="holds lists or objects"):
            add_labels(cb([[0], [1]]), TASKS["cb"], optional=optional)


@pytest.mark.parametrize("rows", [cb([-1, -1]), source("idx", [0, 1], "premise", "hypothesis")])
def test_a_hidden_test_set_has_no_labels(rows: Source) -> None:
    assert add_labels(rows, TASKS["cb"], optional=True).column_names == ["premise", "hypothesis"]


def test_a_test_set_with_some_labels_hidden_is_refused() -> None:
    with pytest.raises(ValueError, match="row 2: label=-1 is outside"):
        add_labels(cb([1, -1]), TASKS["cb"], optional=True)


@pytest.mark.parametrize(
    ("values", "names", "numbers"),
    [
        (["spam", "ham", "spam"], ("ham", "spam"), [1, 0, 1]),
        ([10, 9, 10], ("9", "10"), [1, 0, 1]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
    ],
)
def test_own_files_make_a_class_of_each_label(values: list[Any], names: tuple[str, ...], numbers: list[int]) -> None:
    task = describe_files(OWN, own(values))
    assert (task.kind, task.label_names, task.metrics[0]) == ("classification", names, "accuracy")
    assert add_labels(own(values), task)["labels"][:] == numbers


def test_own_floats_make_a_regression_and_kind_overrides_the_type() -> None:
    task = describe_files(OWN, own([0.5, 7.0]))
    assert (task.kind, task.metrics[0]) == ("regression", "pearson")
    assert add_labels(own([0.5, 7.0]), task)["labels"][:] == [0.5, 7.0]
    ints = describe_files(OWN.model_copy(update={"kind": "regression"}), own([1, 2]))
    assert add_labels(own([1, 2]), ints)["labels"][:] == [1.0, 2.0]


def test_a_label_that_training_does_not_know_is_named() -> None:
    task = describe_files(OWN, own(["spam", "ham"]))
    with pytest.raises(ValueError, match="row 1: topic='eggs' is outside the labels ham, spam"):
        add_labels(own(["eggs"]), task)


def test_own_files_need_two_classes_and_the_column() -> None:
    with pytest.raises(ValueError, match="has 1 labels, two are the least"):
        describe_files(OWN, own(["spam", "spam"]))
    with pytest.raises(ValueError, match=r"no column 'topic', did you mean 'topics'.; its columns are text, topics"):
        describe_files(OWN, source("topics", [0, 1], "text"))


@pytest.mark.parametrize("values", [[1.0, 0.0, 1.0], [1, 0, 1], ["1", "0", "1"], [1.0, None, 0.0]])
def test_whole_numbers_are_classes_however_they_are_written(values: list[Any]) -> None:
    task = describe_files(OWN, own(values))
    assert (task.kind, task.label_names) == ("classification", ("0", "1"))
    asked = describe_files(OWN.model_copy(update={"kind": "regression"}), own([1.0, 0.0]))
    assert asked.kind == "regression"


@pytest.mark.parametrize("slip", ["Spam", "spam ", "SPAM", "spam\u00a0"])
def test_a_label_that_looks_like_another_is_asked_about(slip: str) -> None:
    values = ["spam", "ham", "spam", slip, "ham"]
    with pytest.raises(ValueError, match=r"a\.csv, row 4: topic=.* \(1 rows\) looks like 'spam' \(2 rows\)"):
        describe_files(OWN, own(values))
    task = describe_files(OWN.model_copy(update={"labels": ("spam", "ham", slip)}), own(values))
    assert add_labels(own(values), task)["labels"][:] == [0, 1, 0, 2, 1]


def test_named_classes_are_all_there_are() -> None:
    task = describe_files(OWN.model_copy(update={"labels": ("2", "1")}), own([1, 2, 3]))
    assert task.label_names == ("2", "1")
    with pytest.raises(ValueError, match="row 3: topic='3' is outside the labels 2, 1"):
        add_labels(own([1, 2, 3]), task)
