from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from rankwise.tasks.read import read_file

CSV = "text,label\nGrüße,1\nà bientôt,0\n"
ROWS = [{"text": "Grüße", "label": 1}, {"text": "à bientôt", "label": 0}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_the_byte_order_mark_says_the_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.csv").write_bytes(CSV.encode(encoding))
    assert read_file(tmp_path / "a.csv").rows.to_list() == ROWS


def test_another_encoding_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(CSV.encode("cp1252"))
    assert read_file(tmp_path / "a.csv", encoding="cp1252").rows.to_list() == ROWS
    with pytest.raises(ValueError, match=r"a\.csv, line 2: byte 0xfc is not utf-8"):
        read_file(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(CSV.encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"b\.csv, line 2: .*data\.encoding: utf-16-le"):
        read_file(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_bytes(b"text,label\na\0b,1\n")
    with pytest.raises(ValueError, match=r"c\.csv, line 2 holds a NUL"):
        read_file(tmp_path / "c.csv")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_header_says_the_delimiter(tmp_path: Path, delimiter: str) -> None:
    (tmp_path / "a.csv").write_text(CSV.replace(",", delimiter))
    assert read_file(tmp_path / "a.csv").rows.to_list() == ROWS


def test_a_header_that_could_mean_two_delimiters_is_asked_about(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text;a|label\nx;y|1\n")
    with pytest.raises(ValueError, match=r"has ';' and '\|': say which one .*data\.delimiter"):
        read_file(tmp_path / "a.csv")
    assert read_file(tmp_path / "a.csv", delimiter="|").rows.column_names == ["text;a", "label"]


@pytest.mark.parametrize("name", ["A.CSV", "a.csv.gz", "A.Csv.GZ"])
def test_endings_may_be_upper_case_and_zipped(tmp_path: Path, name: str) -> None:
    data = CSV.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.lower().endswith("gz") else data)
    assert read_file(tmp_path / name).rows.to_list() == ROWS


def test_what_is_no_gzip_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(CSV.encode())[:-9])
    with pytest.raises(ValueError, match=r"a\.csv\.gz is no whole gzip file"):
        read_file(tmp_path / "a.csv.gz")
    (tmp_path / "a.parquet.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="Parquet compresses by itself"):
        read_file(tmp_path / "a.parquet.gz")


def test_a_csv_text_column_is_text_whatever_it_looks_like(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n007,1\n2020-01-01,0\n")
    assert read_file(tmp_path / "a.csv", texts=["text"]).rows["text"][:] == ["007", "2020-01-01"]


def test_a_csv_column_has_the_type_of_all_its_rows(tmp_path: Path) -> None:
    rows = "".join(f"{'x' * 100},{n % 2}\n" for n in range(20_000))  # more than a block of pyarrow's
    (tmp_path / "a.csv").write_text(f"text,label\n{rows}last,spam\n")
    assert set(read_file(tmp_path / "a.csv").rows.unique("label")) == {"0", "1", "spam"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,text,label\na,b,1\n", r"a\.csv has 2 columns named 'text' \(columns 1, 2\)"),
        ("a.jsonl", '{"text": "a", "text": "b"}\n', r"a\.jsonl, line 1: key 'text' stands twice"),
        ("a.json", '[{"text": "a", "text": "b"}]', r"a\.json: key 'text' stands twice"),
        ("a.jsonl", '{"text": "a"}\n' + "[" * 100_000 + "\n", r"a\.jsonl, line 2: brackets are nested too deeply"),
        ("a.json", "[" * 100_000, r"a\.json: brackets are nested too deeply"),
        ("a.jsonl", '{"n": 1}\n{"n": ' + "9" * 30 + "}\n", r"a\.jsonl, row 2: column 'n' holds 9{30}"),
        ("a.jsonl", '{"n": ' + "9" * 5000 + "}\n", r"a\.jsonl, line 1: Exceeds the limit"),
        ("a.jsonl", '{"text": "a"}\n{"text": "\\ud800"}\n', r"a\.jsonl, row 2: column 'text' holds"),
        ("a.csv", 'text,label\nx,1\n"y,0\n', r"a\.csv: CSV parse error"),
    ],
)
def test_a_bad_file_says_where(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_file(tmp_path / name)


def test_two_parquet_columns_of_a_name_are_refused_and_categories_are_text(tmp_path: Path) -> None:
    column = pa.array(["a", "b"])
    pa.parquet.write_table(pa.Table.from_arrays([column, column], ["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet has 2 columns named 'text'"):
        read_file(tmp_path / "a.parquet")
    pa.parquet.write_table(pa.table({"text": column.dictionary_encode()}), tmp_path / "b.parquet")
    assert read_file(tmp_path / "b.parquet").rows["text"][:] == ["a", "b"]


def test_flipped_bits_in_parquet_are_refused_by_name_or_harmless(tmp_path: Path) -> None:
    rows = {"text": [f"text number {n}" for n in range(50)], "label": [n % 2 for n in range(50)]}
    file = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.table(rows), file, write_page_checksum=True)
    whole = file.read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(300):
        broken = bytearray(whole)
        broken[draw.randrange(len(broken))] ^= 1 << draw.randrange(8)
        file.write_bytes(broken)
        try:
            read_file(file)
        except ValueError as error:
            refused += str(error).startswith(str(file))
    assert refused > 100  # any other error, and one that names no file, fails the test


def test_messages_keep_their_own_keys(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "a"}], "tools": None},
        {"messages": [{"role": "user", "content": ["b", 1]}], "tools": [{"name": "f", "parameters": {"x": "int"}}]},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_file(tmp_path / "a.jsonl").rows.to_list() == rows
