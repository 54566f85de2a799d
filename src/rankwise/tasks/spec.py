"""``DataSpec``: the part of a recipe that says which data, where it is and how it is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rankwise.tasks.registry import find_task


class DataSpec(BaseModel):
    """Which data a run trains on and reports.

    ``DataSpec(task="mrpc")`` takes MRPC from the hub, ``DataSpec(task="mrpc", data_dir="data")`` from
    ``data/mrpc/{train,validation,test}.jsonl`` in the hub's column names, and
    ``DataSpec(train_file="a.csv", text_columns=["title", "body"], label_column="topic")`` is the user's own data.

    Args:
        task: A name in ``TASKS``; none for files with columns of their own.
        data_dir: A folder with one folder per task. Without it, and without files, the hub is asked.
        train_file: ``.jsonl``, ``.json``, ``.csv``, ``.tsv``, ``.parquet`` or ``.txt``; files win over ``data_dir``.
        validation_file: As ``train_file``; only ever reported.
        test_file: As ``train_file``; its labels may be missing, or all -1 as on the hub.
        text_columns: One or two columns with text (own files, and ``task="text"`` in tables).
        label_column: The column with the labels (own files): strings or ints are classes, floats a regression.
        kind: Overrides what the label's type says.
        max_length: Tokens of a sequence, cut beyond; by default the tokenizer's limit, at most 512.
        block_size: Tokens of a block for ``task="text"``; by default as ``max_length``.
        dev_fraction: The share of train that is set apart to choose the epoch by; 0 for none.
        dev_max: At most this many examples are set apart.
        split_seed: Draws the dev split, the same one for every method and seed of a study.
        max_train_samples: Train on a random part of this size (drawn by ``split_seed``, after dev is cut off).
        max_eval_samples: The same for every other split.
        train_on_prompt: For ``task="instruction"``: count the prompt's tokens too, not the answer's alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str | None = None
    data_dir: Path | None = None
    train_file: Path | None = None
    validation_file: Path | None = None
    test_file: Path | None = None
    text_columns: tuple[str, ...] = Field(default=(), max_length=2)
    label_column: str | None = None
    kind: Literal["classification", "regression"] | None = None
    max_length: int | None = Field(default=None, ge=2)
    block_size: int | None = Field(default=None, ge=2)
    dev_fraction: float = Field(default=0.1, ge=0, lt=1)
    dev_max: int = Field(default=1000, ge=1)
    split_seed: int = Field(default=0, ge=0)
    max_train_samples: int | None = Field(default=None, ge=1)
    max_eval_samples: int | None = Field(default=None, ge=1)
    train_on_prompt: bool = False

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
        if self.label_column or self.kind or (self.text_columns and task.name != "text"):
            raise ValueError(
                f"task={self.task!r} has its own columns ({', '.join(task.columns)}): remove text_columns, "
                "label_column and kind, or leave task out to describe files of your own"
            )
        if task.name == "text" and len(self.text_columns) > 1:
            raise ValueError(f"text_columns={list(self.text_columns)}: task='text' reads one column")
        has_files = self.train_file or self.data_dir
        if not task.hub and not has_files and task.name != "docstrings":
            raise ValueError(f"task={self.task!r} is not on the hub: give train_file, or data_dir")
        if not self.train_file and (self.validation_file or self.test_file):
            raise ValueError("validation_file and test_file go with train_file: give that too")
        return self

    def _check_own_files(self) -> None:
        missing = [name for name in ("train_file", "text_columns", "label_column") if not getattr(self, name)]
        if missing:
            raise ValueError(
                f"{', '.join(missing)} missing: without task, own files need train_file, text_columns and label_column "
                "(for text without labels set task to 'text', for instructions to 'instruction')"
            )
