from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rankwise.tasks import DataSpec, TaskData, load_task
from rankwise.tasks.labels import add_labels, describe_files
from rankwise.tasks.read import read_splits
from rankwise.tasks.written import read_labels, reading_of

OWN = DataSpec(train_file=Path("a.csv"), text_columns=("text",), label_column="topic")


def own(folder: Path, train: list[str], validation: list[str] | None = None, **more: Any) -> DataSpec:
    """Files with these labels, as they stand there."""
    given: dict[str, Any] = {}
    for split, labels in (("train", train), ("validation", validation)):
        if labels is not None:
            file = folder / f"{split}.csv"
            file.write_text("text,topic\n" + "".join(f"x,{label}\n" for label in labels))
            given[f"{split}_file"] = file
    return DataSpec(**given, text_columns=("text",), label_column="topic", **more)


def labels_of(spec: DataSpec) -> tuple[str, tuple[str, ...], dict[str, list[Any]]]:
    """The kind, the classes and the labels of each split."""
    splits = read_splits(spec, None)
    task = describe_files(spec, splits["train"])
    return task.kind, task.label_names, {name: add_labels(each, task)["labels"][:] for name, each in splits.items()}


@pytest.mark.parametrize(
    ("train", "names"),
    [
        (["true", "false"], ("false", "true")),
        (["01", "1", "10"], ("01", "1", "10")),
        (["12345678901234567890", "12345678901234567891"], ("12345678901234567890", "12345678901234567891")),
        (["2020-01-01", "2021-01-01"], ("2020-01-01", "2021-01-01")),
        (["1e5", "1e6"], ("1e5", "1e6")),
        (["A1", "01", "1.0"], ("01", "1.0", "A1")),
    ],
)
def test_a_class_has_the_name_that_the_file_has(tmp_path: Path, train: list[str], names: tuple[str, ...]) -> None:
    kind, found, labels = labels_of(own(tmp_path, train, train))
    assert (kind, found) == ("classification", names)
    assert labels["train"] == labels["validation"] == [names.index(label) for label in train]
    assert [found[number] for number in labels["train"]] == train


@pytest.mark.parametrize(
    ("train", "validation"),
    [(["true", "false", "mixed"], ["false", "true"]), (["01", "02", "A1"], ["01", "02"]), (["1e5", "x"], ["1e5"])],
)
def test_a_split_is_read_as_train_is(tmp_path: Path, train: list[str], validation: list[str]) -> None:
    _, names, labels = labels_of(own(tmp_path, train, validation))
    assert [names[number] for number in labels["validation"]] == validation


@pytest.mark.parametrize("train", [["10", "9", "-1"], ["10.0", "9.0", "-1.0"], [" 10", "9.", "-1"]])
def test_whole_numbers_are_classes_in_their_order(tmp_path: Path, train: list[str]) -> None:
    kind, names, labels = labels_of(own(tmp_path, train, ["9.0", "10"]))
    assert (kind, names) == ("classification", ("-1", "9", "10"))
    assert labels == {"train": [2, 1, 0], "validation": [1, 2]}


def test_named_classes_are_found_as_they_are_written_and_one_point_zero_is_one(tmp_path: Path) -> None:
    assert labels_of(own(tmp_path, ["01", "02"], labels=("01", "02")))[2] == {"train": [0, 1]}
    assert labels_of(own(tmp_path, ["1.50", "2.25"], labels=("2.25", "1.50")))[2] == {"train": [1, 0]}
    assert labels_of(own(tmp_path, ["1.0", "0"], labels=("0", "1")))[2] == {"train": [1, 0]}
    with pytest.raises(ValueError, match="row 1: topic='01' is outside the labels 1, 2"):
        labels_of(own(tmp_path, ["01", "2"], labels=("1", "2")))


def test_numbers_that_are_not_whole_make_a_regression(tmp_path: Path) -> None:
    kind, _, labels = labels_of(own(tmp_path, ["1.50", "2", "1e-05", ".5"], ["3", "4"]))
    assert (kind, labels) == ("regression", {"train": [1.5, 2.0, 1e-5, 0.5], "validation": [3.0, 4.0]})
    asked = labels_of(own(tmp_path, ["007", "2"], kind="regression"))
    assert asked[2] == {"train": [7.0, 2.0]}
    named = labels_of(own(tmp_path, ["1.50", "2.25"], kind="classification"))
    assert named[1] == ("1.50", "2.25")


@pytest.mark.parametrize(
    ("train", "validation", "words"),
    [
        (["1", "2"], ["1.0", "x"], r"validation\.csv, row 2: topic='x' is outside the labels 1, 2"),
        (["1.5", "2"], ["1", "x"], r"validation\.csv, row 2: topic='x' is not a finite number.*data\.kind"),
        (["1.5", "inf"], None, r"train\.csv, row 2: topic=inf is not a finite number"),
        (["a", "b"], ["TRUE"], r"validation\.csv, row 1: topic='TRUE' is outside the labels a, b"),
    ],
)
def test_an_error_says_what_the_file_has(
    tmp_path: Path, train: list[str], validation: list[str] | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        labels_of(own(tmp_path, train, validation))


def test_a_missing_number_is_missing(tmp_path: Path, bert_tokenizer: Any) -> None:
    spec = own(tmp_path, ["1", "nan", "0", "  "] + ["1", "0"] * 10, missing="drop")
    data: TaskData = load_task(spec, bert_tokenizer)
    assert (data.label_names, data.missing) == (("0", "1"), {"train": 2})
    with pytest.raises(ValueError, match="row 2: column 'topic' has no label"):
        load_task(spec.model_copy(update={"missing": None}), bert_tokenizer)


def test_a_format_with_types_keeps_them_and_rules_a_csv_beside_it() -> None:
    assert reading_of([1, 2], OWN, delimited=False) == "wholes"
    assert reading_of([1.5, 2.0], OWN, delimited=False) == "numbers"
    assert reading_of(["1", "2"], OWN, delimited=False) == "names"
    assert reading_of([True, False], OWN, delimited=False) == "names"
    assert reading_of([None, ""], OWN, delimited=True) == "names"
    assert read_labels(["1.0", None, "2"], "wholes", OWN, "a.csv") == [1, None, 2]
    assert read_labels(["1.0", "-0", "x"], "wholes", OWN, "a.csv") == ["1", "0", "x"]
    with pytest.raises(ValueError, match="row 1: topic='1_0' is not a finite number"):
        read_labels(["1_0"], "numbers", OWN, "a.csv")


def test_a_column_that_is_text_and_label_stays_text(tmp_path: Path) -> None:
    spec = own(tmp_path, ["1", "2"]).model_copy(update={"text_columns": ("topic",)})
    assert read_splits(spec, None)["train"].rows["topic"][:] == ["1", "2"]
