"""``DataSpec``: the part of a recipe that says which data, where it is and how it is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rankwise.tasks.registry import ANSWERS, find_task


class DataSpec(BaseModel):
    """Which data a run trains on and reports.

    ``DataSpec(task="mrpc")`` takes MRPC from the hub, ``DataSpec(task="mrpc", data_dir="data")`` from
    ``data/mrpc/{train,validation,test}.jsonl`` in the hub's column names, and
    ``DataSpec(train_file="a.csv", text_columns=["title", "body"], label_column="topic")`` is the user's own data.

    Args:
        task: A name in ``TASKS``; none for files with columns of their own.
        data_dir: A folder with one folder per task. Without it, and without files, the hub is asked.
        train_file: ``.jsonl``, ``.json``, ``.csv``, ``.tsv``, ``.parquet`` or ``.txt``, the text formats also with
            ``.gz``; files win over ``data_dir``.
        validation_file: As ``train_file``; only ever reported.
        test_file: As ``train_file``; its labels may be missing, or all -1 as on the hub, and nothing is reported on it.
            Held-out rows that are to be reported are a ``validation_file``.
        text_columns: One or two columns with text (own files, and ``task="text"`` in tables).
        dataset: The id of a dataset on the Hugging Face hub (or a folder that ``datasets`` reads), in place of files.
        config: Its configuration, where it has several.
        splits: Which of its splits to take where names differ, for example ``{validation: test}``; parts
            too, ``{train: "train[:80%]"}``.
        encoding: Of text files; by default what their byte order mark says, else UTF-8.
        delimiter: Of CSV files; by default the one their header has.
        label_column: The column with the labels (own files): strings and whole numbers are classes, other numbers a
            regression. What a CSV has is text: it stands for numbers where all of train's are (``01`` is none).
        labels: The classes, in order (own files): nothing else is a label then, and names that look alike are meant.
        kind: Overrides what the labels say.
        missing: What to do where a text or label is null, empty or white space: ``refuse`` (the default), ``drop`` the
            row, or ``keep`` an empty text (QQP's default).
        max_length: Tokens of a sequence, cut beyond; by default the limit of tokenizer and model, at most 512.
        block_size: Tokens of a block for ``task="text"``; by default as ``max_length``.
        dev_fraction: The share of train that is set apart to choose the epoch by; 0 for none.
        dev_max: At most this many examples are set apart.
        validation_fraction: The share of train (at most ``dev_max`` examples) that is set apart to be reported, where
            the data has no validation split; 0 for none.
        split_seed: Draws the splits that are set apart, the same one for every method and seed of a study.
        max_train_samples: Train on a random part of this size (drawn by ``split_seed``, after dev is cut off).
        max_eval_samples: The same for every other split.
        train_on_prompt: For ``task="instruction"`` and ``"chat"``: count the prompt's tokens too, not the answer's
            alone.
        allow_cut_answers: Train although more than a tenth of the answers are cut at ``max_length``.
        packing: For ``task="instruction"`` and ``"chat"``: put several training rows into one sequence of
            ``max_length``; each still sees itself alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str | None = None
    data_dir: Path | None = None
    train_file: Path | None = None
    validation_file: Path | None = None
    test_file: Path | None = None
    dataset: str | None = Field(default=None, min_length=1)
    config: str | None = None
    splits: dict[Literal["train", "validation", "test"], str] = {}
    encoding: str | None = None
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    text_columns: tuple[str, ...] = Field(default=(), max_length=2)
    label_column: str | None = None
    labels: tuple[str, ...] | None = Field(default=None, min_length=2)
    kind: Literal["classification", "regression"] | None = None
    missing: Literal["refuse", "drop", "keep"] | None = None
    max_length: int | None = Field(default=None, ge=2)
    block_size: int | None = Field(default=None, ge=2)
    dev_fraction: float = Field(default=0.1, ge=0, lt=1)
    dev_max: int = Field(default=1000, ge=1)
    validation_fraction: float = Field(default=0, ge=0, lt=1)
    split_seed: int = Field(default=0, ge=0)
    max_train_samples: int | None = Field(default=None, ge=1)
    max_eval_samples: int | None = Field(default=None, ge=1)
    train_on_prompt: bool = False
    allow_cut_answers: bool = False
    packing: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that hold text."""
        if self.task is None or self.task == "text":
            return self.text_columns or ("text",)
        return find_task(self.task).columns

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, name: str | None) -> str | None:
        try:
            if name is not None:
                "".encode(name)
        except LookupError as error:
            raise ValueError(f"{name!r} is no text encoding that Python knows (for example utf-8, cp1252)") from error
        return name

    @field_validator("task")
    @classmethod
    def _task_is_known(cls, name: str | None) -> str | None:
        return name if name is None else find_task(name).name

    @model_validator(mode="after")
    def _fields_agree(self) -> DataSpec:
        if self.task is None:
            self._check_own_files()
            return self
        task = find_task(self.task)
        if self.label_column or self.kind or self.labels or (self.text_columns and task.name != "text"):
            raise ValueError(
                f"task={self.task!r} has its own columns ({', '.join(task.columns)}): remove text_columns, "
                "label_column, labels and kind, or leave task out to describe files of your own"
            )
        if task.name == "text" and len(self.text_columns) > 1:
            raise ValueError(f"text_columns={list(self.text_columns)}: task='text' reads one column")
        if self.packing and task.name not in ANSWERS:
            raise ValueError(f"packing is for task {' and '.join(map(repr, ANSWERS))}, not {self.task!r}: leave it out")
        if self.dataset and task.label is not None:
            raise ValueError(
                f"dataset={self.dataset!r} with task={self.task!r}: the task knows its own data; leave one of them out"
            )
        self._check_places(bool(task.hub) or task.name == "docstrings")
        return self

    def _check_places(self, elsewhere: bool) -> None:
        if not (self.train_file or self.data_dir or self.dataset or elsewhere):
            raise ValueError(f"task={self.task!r} is not on the hub: give train_file, data_dir or dataset")
        if self.dataset and (self.train_file or self.data_dir):
            raise ValueError(f"dataset={self.dataset!r} beside train_file or data_dir: say where the data is once")
        if not self.dataset and (self.config or self.splits):
            raise ValueError("config and splits go with dataset: give that too")
        if not self.train_file and (self.validation_file or self.test_file):
            raise ValueError("validation_file and test_file go with train_file: give that too")

    def _check_own_files(self) -> None:
        missing = [name for name in ("text_columns", "label_column") if not getattr(self, name)]
        if not (self.train_file or self.dataset):
            missing = ["train_file (or dataset)", *missing]
        if missing:
            raise ValueError(
                f"{', '.join(missing)} missing: without task, own data needs train_file or dataset, text_columns and "
                "label_column (for text without labels set task to 'text', for instructions to 'instruction', for "
                "conversations to 'chat')"
            )
        if self.packing:
            raise ValueError(f"packing is for task {' and '.join(map(repr, ANSWERS))}: leave it out")
        if self.labels and self.kind == "regression":
            raise ValueError("labels are classes and kind is 'regression': leave one of them out")
        self._check_places(elsewhere=True)
