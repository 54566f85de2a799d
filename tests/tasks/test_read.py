from __future__ import annotations

import contextlib
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from rankwise.tasks import DataSpec
from rankwise.tasks.missing import without_missing
from rankwise.tasks.read import Source, quiet, read_file, read_splits
from rankwise.tasks.registry import TASKS

ROWS = [{"text": "one, two", "label": 1}, {"text": 'a "quote"\nand a line', "label": 0}]


def write(file: Path) -> Path:
    if file.suffix == ".jsonl":
        file.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    elif file.suffix == ".json":
        file.write_text(json.dumps(ROWS))
    elif file.suffix == ".csv":
        file.write_text('text,label\n"one, two",1\n"a ""quote""\nand a line",0\n')
    elif file.suffix == ".tsv":
        file.write_text('text\tlabel\none, two\t1\n"a ""quote""\nand a line"\t0\n')
    else:
        pa.parquet.write_table(pa.Table.from_pylist(ROWS), file)
    return file


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    assert read_file(write(tmp_path / f"train{suffix}")).rows.to_list() == ROWS


def test_a_text_file_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" one\n\ntwo\n")
    assert read_file(tmp_path / "a.txt").rows.to_list() == [{"text": " one\n\ntwo\n"}]


def test_a_csv_text_that_reads_null_stays_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nnull,1\nNA,0\n")
    assert read_file(tmp_path / "a.csv").rows["text"][:] == ["null", "NA"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": "y"\n', r"a\.jsonl, line 2: not JSON .*: '\{\"text\": \"y\"'"),
        ("a.jsonl", '{"text": "x"}\n[1]\n', r"a\.jsonl, row 2 holds \[1\], not an object"),
        ("a.jsonl", '{"text": "x"}\n{"text": 1}\n', r"a\.jsonl, row 2: column 'text' mixes types: 1 after 'x'"),
        ("a.jsonl", "", r"a\.jsonl is empty"),
        ("a.json", "[\n{]", r"a\.json, line 2: not JSON"),
        ("a.json", '{"data": []}', "holds a JSON dict, not a list of objects"),
        ("a.json", "[]", r"a\.json is empty"),
        ("a.csv", "", r"a\.csv: Empty CSV file"),
        ("a.csv", "text,label\n", r"a\.csv is empty"),
        ("a.csv", "text,label\nx,1\ny\n", r"a\.csv: CSV parse error: .*got 1"),
        ("a.parquet", "PAR0", r"a\.parquet is damaged or no Parquet file"),
        ("a.txt", " \n", r"a\.txt is empty"),
        ("a.xls", "x", r"suffix '\.xls' is not one of \.jsonl"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_file(tmp_path / name)


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"text": "é"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1: byte 0xe9 is not utf-8 .*data\.encoding: cp1252"):
        read_file(tmp_path / "a.jsonl")


def test_a_missing_file_gets_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl")
    with pytest.raises(ValueError, match=r"no file .*trian\.jsonl, did you mean 'train\.jsonl'"):
        read_file(tmp_path / "trian.jsonl")


def test_a_missing_column_gets_the_columns_there_are() -> None:
    source = Source(Dataset.from_list(ROWS), "a.csv")
    with pytest.raises(ValueError, match=r"no column 'txt', did you mean 'text'.; its columns are text, label"):
        without_missing(source, ["txt"])


def test_a_text_that_is_null_or_a_number_is_named() -> None:
    source = Source(Dataset.from_dict({"text": ["x", None], "label": [0, 1]}), "a.csv")
    with pytest.raises(ValueError, match=r"a\.csv, row 2: column 'text' has no text"):
        without_missing(source, ["text"])
    with pytest.raises(ValueError, match="column 'label' holds int64, not text"):
        without_missing(source, ["label"])


def test_a_missing_folder_gets_the_folders_there_are(tmp_path: Path) -> None:
    (tmp_path / "mrpcs").mkdir()
    spec = DataSpec(task="mrpc", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"no folder .*mrpc, did you mean 'mrpcs'.*holds mrpcs"):
        read_splits(spec, TASKS["mrpc"])
    (tmp_path / "mrpc").mkdir()
    with pytest.raises(ValueError, match=r"has no train\.jsonl"):
        read_splits(spec, TASKS["mrpc"])


def test_the_hub_is_asked_for_the_splits_a_task_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    rows = Dataset.from_list([{"premise": "a", "hypothesis": "b", "label": 0}])
    names = ("train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched")

    def load(path: str, name: str) -> DatasetDict:
        asked.append((path, name))
        return DatasetDict(dict.fromkeys(names, rows))

    monkeypatch.setattr(datasets, "load_dataset", load)
    splits = read_splits(DataSpec(task="mnli"), TASKS["mnli"])
    assert asked == [("nyu-mll/glue", "mnli")]
    assert {name: source.where for name, source in splits.items()} == {
        "train": "nyu-mll/glue mnli, split train",
        "validation": "nyu-mll/glue mnli, split validation_matched",
        "test": "nyu-mll/glue mnli, split test_matched",
        "validation_mismatched": "nyu-mll/glue mnli, split validation_mismatched",
    }


@pytest.mark.parametrize("were_off", [True, False])
def test_progress_bars_are_left_as_they_were(were_off: bool) -> None:
    before = datasets.are_progress_bars_disabled()
    try:
        (datasets.disable_progress_bars if were_off else datasets.enable_progress_bars)()
        with contextlib.suppress(KeyError), quiet():
            assert datasets.are_progress_bars_disabled()
            raise KeyError
        assert datasets.are_progress_bars_disabled() == were_off
    finally:
        (datasets.disable_progress_bars if before else datasets.enable_progress_bars)()
