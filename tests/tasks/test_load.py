from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rankwise.tasks import TASKS, DataSpec, load_task

BENCHMARKS = [name for name, task in TASKS.items() if task.hub]
HIDDEN = -1


def make_rows(name: str, size: int) -> list[dict[str, Any]]:
    """Rows in the hub's column names, with its ``idx``, classes in turn."""
    task = TASKS[name]
    classes = len(task.label_names)
    return [
        {column: f"{column} number {number}" for column in task.columns}
        | {"label": number % classes if classes else (number % 51) / 10, "idx": number}
        for number in range(size)
    ]


def hidden(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"label": HIDDEN} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_loads_from_a_folder(
    name: str, write_task: Any, bert_tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = make_rows(name, 60)
    folder = write_task(name, train=rows, validation=rows[:7], test=hidden(rows[:5]))
    data = load_task(DataSpec(task=name, data_dir=folder), bert_tokenizer)
    assert data.dev is not None
    assert data.validation is not None
    assert data.test is not None
    assert (len(data.train), len(data.dev), len(data.validation), len(data.test)) == (54, 6, 7, 5)
    assert data.validation["labels"][:] == [row["label"] for row in rows[:7]]
    assert "labels" not in data.test.column_names
    assert sum(data.truncated.values()) == 0
    batch = data.collator([data.validation[row] for row in range(3)])
    assert batch["input_ids"].shape[0] == (6 if data.kind == "choice" else 3)
    assert batch["labels"].shape == (3,)
    assert batch["labels"].dtype == (torch.float32 if data.kind == "regression" else torch.int64)
    text = bert_tokenizer.decode(batch["input_ids"][0])
    shown = TASKS[name].columns if data.kind != "choice" else ("premise", "choice1")
    assert all(f"{column} number 0" in text for column in shown)


def test_mnli_reports_the_mismatched_split_too(write_task: Any, bert_tokenizer: PreTrainedTokenizerBase) -> None:
    rows = make_rows("mnli", 60)
    splits = {"validation_matched": rows[:4], "validation_mismatched": rows[:5], "test_matched": hidden(rows[:6])}
    data = load_task(DataSpec(task="mnli", data_dir=write_task("mnli", train=rows, **splits)), bert_tokenizer)
    assert data.validation is not None
    assert data.test is not None
    assert (len(data.validation), len(data.extra["validation_mismatched"]), len(data.test)) == (4, 5, 6)


@pytest.mark.parametrize(("name", "train", "dev"), [("mrpc", 3669, 407), ("rte", 2241, 249), ("sst2", 66349, 1000)])
def test_the_real_data(shared: Path, name: str, train: int, dev: int, bert_tokenizer: PreTrainedTokenizerBase) -> None:
    spec = DataSpec(task=name, data_dir=shared / "data", max_train_samples=50, max_eval_samples=2000)
    data = load_task(spec.model_copy(update={"max_train_samples": None} if name != "sst2" else {}), bert_tokenizer)
    assert data.dev is not None
    assert (len(data.train), len(data.dev)) == (50 if name == "sst2" else train, dev)
    if name != "sst2":
        whole = Counter([*data.train["labels"], *data.dev["labels"]])
        share = {label: count * len(data.dev) / sum(whole.values()) for label, count in whole.items()}
        assert Counter(data.dev["labels"]) == {label: pytest.approx(count, abs=1) for label, count in share.items()}


def test_own_files_of_three_formats(tmp_path: Path, bert_tokenizer: PreTrainedTokenizerBase) -> None:
    (tmp_path / "train.csv").write_text("title,topic\n" + "good thing,pro\nbad thing,con\n" * 20)
    (tmp_path / "validation.jsonl").write_text('{"title": "a good thing", "topic": "pro"}\n')
    (tmp_path / "test.tsv").write_text("title\nanything\n")
    spec = DataSpec(
        train_file=tmp_path / "train.csv",
        validation_file=tmp_path / "validation.jsonl",
        test_file=tmp_path / "test.tsv",
        text_columns=("title",),
        label_column="topic",
    )
    data = load_task(spec, bert_tokenizer)
    assert data.validation is not None
    assert (data.name, data.label_names, data.columns) == ("custom", ("con", "pro"), ("title",))
    assert data.validation["labels"][:] == [1]
    assert data.test is not None
    assert data.test.column_names == ["input_ids", "token_type_ids", "attention_mask"]


def test_instructions_of_the_real_data(shared: Path, llama_tokenizer: PreTrainedTokenizerBase) -> None:
    file = shared / "data/alpaca/train.jsonl"
    spec = DataSpec(task="instruction", train_file=file, max_length=256, allow_cut_answers=True)
    with pytest.warns(UserWarning, match=r"answers are cut at max_length=256"):
        data = load_task(spec, llama_tokenizer)
    assert data.dev is not None
    assert data.validation is None
    assert len(data.train) + len(data.dev) + data.dropped["train"] + data.dropped["dev"] == 999
    assert data.dropped["train"] < data.truncated["train"]
    assert data.cut_answers["train"] == data.truncated["train"] - data.dropped["train"]
    assert max(map(len, data.train["input_ids"])) == 256


@pytest.mark.slow
def test_text_of_the_real_data(shared: Path, llama_tokenizer: PreTrainedTokenizerBase) -> None:
    folder = shared / "data/wikitext2"
    spec = DataSpec(
        task="text", train_file=folder / "validation.txt", validation_file=folder / "test.txt", block_size=256
    )
    data = load_task(spec, llama_tokenizer)
    assert data.validation is not None
    text = (folder / "test.txt").read_text(encoding="utf-8")
    tokens = len(llama_tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    counted = sum(label != -100 for labels in data.validation["labels"] for label in labels)
    assert counted == tokens


def test_smaller_samples_leave_the_dev_split_as_it_is(write_task: Any, bert_tokenizer: PreTrainedTokenizerBase) -> None:
    folder = write_task("cola", train=make_rows("cola", 60), validation=make_rows("cola", 9))
    whole = load_task(DataSpec(task="cola", data_dir=folder), bert_tokenizer)
    small = load_task(DataSpec(task="cola", data_dir=folder, max_train_samples=5), bert_tokenizer)
    tiny = load_task(DataSpec(task="cola", data_dir=folder, max_eval_samples=3), bert_tokenizer)
    assert whole.dev is not None
    assert small.dev is not None
    assert tiny.dev is not None
    assert tiny.validation is not None
    assert small.dev["input_ids"][:] == whole.dev["input_ids"][:]
    assert (len(small.train), len(tiny.train), len(tiny.dev), len(tiny.validation)) == (5, 54, 3, 3)
    assert load_task(DataSpec(task="cola", data_dir=folder, dev_fraction=0), bert_tokenizer).dev is None


@pytest.mark.usefixtures("untouched_generators")
def test_loading_leaves_no_trace(
    write_task: Any, bert_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = write_task("rte", train=make_rows("rte", 60), validation=make_rows("rte", 9))
    files = sorted(tmp_path.rglob("*"))
    first, again = (load_task(DataSpec(task="rte", data_dir=folder), bert_tokenizer) for _ in range(2))
    assert sorted(tmp_path.rglob("*")) == files
    assert first.train.cache_files == []
    assert first.train.to_dict() == again.train.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sentence2": None}, r"train\.jsonl, row 3: column 'sentence2' has no text"),
        ({"label": 2}, r"train\.jsonl, row 3: label=2 is outside the labels 0 \(entailment\), 1 \(not_entailment\)"),
        ({"label": HIDDEN}, r"train\.jsonl, row 3: label=-1 is outside the labels"),
    ],
)
def test_a_bad_row_is_named(
    change: dict[str, Any], message: str, write_task: Any, bert_tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = make_rows("rte", 9)
    rows[2] |= change
    with pytest.raises(ValueError, match=message):
        load_task(DataSpec(task="rte", data_dir=write_task("rte", train=rows)), bert_tokenizer)


def test_a_missing_column_and_an_empty_split_are_named(
    write_task: Any, bert_tokenizer: PreTrainedTokenizerBase
) -> None:
    renamed = [
        {"sentence_2" if key == "sentence2" else key: value for key, value in row.items()}
        for row in make_rows("rte", 9)
    ]
    with pytest.raises(
        ValueError, match=r"no column 'sentence2', did you mean 'sentence_2'.; its columns are sentence1, "
    ):
        load_task(DataSpec(task="rte", data_dir=write_task("rte", train=renamed)), bert_tokenizer)
    folder = write_task("rte", train=make_rows("rte", 9), validation=[])
    with pytest.raises(ValueError, match=r"validation\.jsonl is empty: it has no rows"):
        load_task(DataSpec(task="rte", data_dir=folder), bert_tokenizer)


def test_instructions_that_leave_no_answer_say_so(tmp_path: Path, llama_tokenizer: PreTrainedTokenizerBase) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": "Say hello.", "input": "", "output": "Hello."}\n' * 4)
    spec = DataSpec(task="instruction", train_file=tmp_path / "a.jsonl", max_length=8)
    with pytest.raises(ValueError, match="split 'train' is empty: all 3 examples lost their answer at max_length=8"):
        load_task(spec, llama_tokenizer)
