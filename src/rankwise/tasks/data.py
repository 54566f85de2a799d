"""``TaskData``: everything a training run needs to know about its data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerBase,
)

from rankwise.tasks.labels import LABELS
from rankwise.tasks.losses import (
    ChoiceCollator,
    choice_logits,
    choice_loss,
    first_logits,
    regression_loss,
    token_sums,
)
from rankwise.tasks.metrics import SMALLER_IS_BETTER, compute_metrics
from rankwise.tasks.packing import LENGTHS, PackedCollator
from rankwise.tasks.registry import ANSWERS, Task

LOSSES: dict[str, Callable[..., Tensor]] = {"choice": choice_loss, "regression": regression_loss}


def _lengths(rows: Dataset) -> list[int]:
    """Return the lengths of all sequences as they were encoded; a choice has several in a row, a packed row too."""
    if LENGTHS in rows.column_names:
        return [length for row in rows[LENGTHS] for length in row]
    ids = rows["input_ids"]
    return [len(each) for row in ids for each in (row if isinstance(row[0], list) else [row])]


@dataclass(frozen=True)
class TaskData:
    """A task's data, tokenized, with what ``transformers.Trainer`` needs beside it.

    Args:
        task: What the data is.
        tokenizer: With a pad token.
        train: What every method trains on.
        dev: Cut off from train, to choose the epoch by; none if none was asked for.
        validation: Only ever reported.
        test: Counted, and never reported: where it is a benchmark's its labels are kept back.
        extra: Further splits to report, by name.
        truncated: For each split, how many rows were cut at the greatest length.
        dropped: For each split, how many examples had no token to learn left.
        cut_answers: For each split, how many answers lost a part.
        missing: For each file or split read, how many rows lacked a text or a label and were left out.
        form: How a row is written for the model: ``"conversation"`` by the chat template, ``"prompt-completion"`` as
            one text behind the other, ``"instruction"`` as Alpaca's prompt, ``"text"`` in blocks, else the task's kind.
        answers_begin: Of plain prompts and completions, the letter or digit that most completions begin with.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    dev: Dataset | None
    validation: Dataset | None
    test: Dataset | None
    extra: Mapping[str, Dataset]
    truncated: Mapping[str, int]
    dropped: Mapping[str, int]
    cut_answers: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, int] = field(default_factory=dict)
    form: str | None = None
    answers_begin: str | None = None

    @property
    def name(self) -> str:
        """The task's name, ``"custom"`` for files of the user's own."""
        return self.task.name

    @property
    def kind(self) -> str:
        """``"classification"``, ``"regression"``, ``"choice"`` or ``"causal"``."""
        return self.task.kind

    @property
    def columns(self) -> tuple[str, ...]:
        """The text columns."""
        return self.task.columns

    @property
    def label_names(self) -> tuple[str, ...]:
        """What the labels 0, 1, ... mean."""
        return self.task.label_names

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is reported, the headline first."""
        return self.task.metrics

    @property
    def headline(self) -> str:
        """The metric to choose and compare by."""
        return self.metrics[0]

    @property
    def greater_is_better(self) -> bool:
        """Whether a larger headline is a better one."""
        return self.headline not in SMALLER_IS_BETTER

    @property
    def learns_answers(self) -> bool:
        """Whether it is answers to prompts that are learned."""
        return self.task.name in ANSWERS

    @property
    def packed(self) -> bool:
        """Whether several training rows share a sequence."""
        return LENGTHS in self.train.column_names

    @property
    def splits(self) -> dict[str, Dataset]:
        """Every split there is, by name."""
        named = {"train": self.train, "dev": self.dev, "validation": self.validation, "test": self.test}
        return {name: rows for name, rows in {**named, **self.extra}.items() if rows is not None}

    def counts(self) -> dict[str, dict[str, Any]]:
        """Return for each split its rows, their lengths, what of it was cut or left out, and into how much it packs."""
        return {name: self._count(name, rows) for name, rows in self.splits.items()}

    def _count(self, name: str, rows: Dataset) -> dict[str, Any]:
        lengths = sorted(_lengths(rows))
        packed = LENGTHS in rows.column_names
        found: dict[str, Any] = {
            "rows": len(lengths) if packed else len(rows),
            **({"packed_sequences": len(rows)} if packed else {}),
            "tokens": {"median": lengths[len(lengths) // 2], "longest": lengths[-1]},
        }
        for what in ("truncated", "cut_answers", "dropped", "missing"):
            found[what] = getattr(self, what).get(name, 0)
        if self.kind == "classification" and LABELS in rows.column_names:
            numbers = Counter(rows[LABELS])
            found["labels"] = {label: numbers[number] for number, label in enumerate(self.label_names)}
        return found

    @property
    def task_type(self) -> Literal["SEQ_CLS", "CAUSAL_LM"]:
        """PEFT's word for the kind of model."""
        return "CAUSAL_LM" if self.kind == "causal" else "SEQ_CLS"

    @property
    def num_labels(self) -> int | None:
        """The outputs of the head: one per class, one score for a regression and for each sequence of a choice."""
        if self.kind == "causal":
            return None
        return len(self.label_names) if self.kind == "classification" else 1

    @property
    def problem_type(self) -> str | None:
        """The model config's ``problem_type``."""
        return {"classification": "single_label_classification", "regression": "regression"}.get(self.kind)

    @property
    def collator(self) -> Callable[[list[dict[str, Any]]], Mapping[str, Tensor]]:
        """Pads a batch to its longest sequence."""
        if self.kind == "choice":
            return ChoiceCollator(self.tokenizer)
        if self.packed:
            return PackedCollator(self.tokenizer)
        return (DataCollatorForSeq2Seq if self.kind == "causal" else DataCollatorWithPadding)(self.tokenizer)

    @property
    def compute_metrics(self) -> Callable[[EvalPrediction], dict[str, float]]:
        """Trainer's ``compute_metrics``."""
        return partial(compute_metrics, kind=self.task.kind, metrics=self.metrics)

    @property
    def preprocess_logits(self) -> Callable[[Any, Any], Tensor]:
        """Trainer's ``preprocess_logits_for_metrics``; a causal task keeps two numbers per sequence, no logits."""
        return {"choice": choice_logits, "causal": token_sums}.get(self.kind, first_logits)

    @property
    def loss_func(self) -> Callable[..., Tensor] | None:
        """Trainer's ``compute_loss_func``; none where the model's own loss is right."""
        return LOSSES.get(self.kind)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of a collated batch; the batch stays as it is."""
        if self.loss_func is None:
            own: Tensor = model(**batch).loss
            return own
        inputs = {name: value for name, value in batch.items() if name != LABELS}
        return self.loss_func(model(**inputs), batch[LABELS])

    def model_arguments(self) -> dict[str, Any]:
        """Return what ``from_pretrained`` of the model needs: the head, the labels' names and the pad token."""
        arguments: dict[str, Any] = {"pad_token_id": self.tokenizer.pad_token_id}
        if self.kind != "causal":
            arguments |= {"num_labels": self.num_labels, "problem_type": self.problem_type}
        if self.kind == "classification":
            arguments["id2label"] = dict(enumerate(self.label_names))
            arguments["label2id"] = {name: number for number, name in enumerate(self.label_names)}
        return arguments

    def trainer_arguments(self) -> dict[str, Any]:
        """Return what ``Trainer`` needs beside the model, its arguments and the splits."""
        return {
            "data_collator": self.collator,
            "compute_metrics": self.compute_metrics,
            "preprocess_logits_for_metrics": self.preprocess_logits,
            "compute_loss_func": self.loss_func,
            "processing_class": self.tokenizer,
        }
