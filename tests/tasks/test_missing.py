from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from transformers import PreTrainedTokenizerBase

from rankwise.tasks import DataSpec, load_task
from rankwise.tasks.missing import without_missing
from rankwise.tasks.read import read_file

GOOD: list[dict[str, Any]] = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(20)]
FORMATS = (".csv", ".json", ".jsonl", ".parquet", ".tsv")


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    if file.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        separator = "," if file.suffix == ".csv" else "\t"
        cells = [["text", "label"], *([row["text"] or "", row["label"] or ""] for row in rows)]
        file.write_text("".join(separator.join(row) + "\n" for row in cells))
    return file


def spec(file: Path, **more: Any) -> DataSpec:
    return DataSpec(train_file=file, text_columns=("text",), label_column="label", **more)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("value", [None, "", "  "])
@pytest.mark.parametrize(("column", "what"), [("text", "text"), ("label", "label")])
def test_one_rule_for_every_format(
    tmp_path: Path, suffix: str, value: str | None, column: str, what: str, bert_tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [dict(row) for row in GOOD]
    rows[6][column] = value
    file = write(tmp_path / f"train{suffix}", rows)
    with pytest.raises(ValueError, match=rf"train\{suffix}, row 7: column '{column}' has no {what} .*1 of 20 rows"):
        load_task(spec(file), bert_tokenizer)
    data = load_task(spec(file, missing="drop"), bert_tokenizer)
    assert data.dev is not None
    assert len(data.train) + len(data.dev) == 19
    assert data.missing == {"train": 1}
    assert data.label_names == ("a", "b")
    assert data.counts()["train"]["missing"] == 1


def test_an_empty_text_can_be_kept_and_a_label_not(tmp_path: Path) -> None:
    rows = [*GOOD, {"text": None, "label": "a"}]
    source = read_file(write(tmp_path / "a.jsonl", rows))
    kept, lost = without_missing(source, ["text"], ["label"], missing="keep")
    assert (kept.rows["text"][-1], lost) == ("", 0)
    source = read_file(write(tmp_path / "b.jsonl", [*GOOD, {"text": "x", "label": None}]))
    with pytest.raises(ValueError, match="row 21: column 'label' has no label"):
        without_missing(source, ["text"], ["label"], missing="keep")


def test_rows_keep_their_numbers_when_others_are_left_out(
    tmp_path: Path, bert_tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [{"text": "", "label": "a"}, *GOOD, {"text": "x", "label": "A "}]
    with pytest.raises(ValueError, match=r"row 22: label='A ' \(1 rows\) looks like 'a' \(10 rows\)"):
        load_task(spec(write(tmp_path / "a.jsonl", rows), missing="drop"), bert_tokenizer)


def test_a_file_without_one_whole_row_is_refused(tmp_path: Path) -> None:
    source = read_file(write(tmp_path / "a.jsonl", [{"text": "", "label": "a"}]))
    with pytest.raises(ValueError, match="nothing is left"):
        without_missing(source, ["text"], missing="drop")


def test_a_test_set_without_labels_is_one_in_every_format(
    tmp_path: Path, bert_tokenizer: PreTrainedTokenizerBase
) -> None:
    train = write(tmp_path / "train.jsonl", GOOD)
    for suffix in (".csv", ".jsonl"):
        hidden = write(tmp_path / f"test{suffix}", [{**row, "label": None} for row in GOOD])
        data = load_task(spec(train, test_file=hidden), bert_tokenizer)
        assert data.test is not None
        assert "labels" not in data.test.column_names
