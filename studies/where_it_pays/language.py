"""The language model and its text: WikiText-2 in rows of 128 tokens, trained on validation, reported on test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from studies.where_it_pays.training import Batch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROW, BATCH = 128, 8
TASK_TYPE = "CAUSAL_LM"


class Language:
    """A causal LM with text to train on and to report on.

    Args:
        model: Folder of the model.
        data: Folder with ``validation.txt`` and ``test.txt``.
        report: How many rows of the test text are reported on, evenly spaced.
    """

    def __init__(self, model: Path, data: Path, *, report: int = 512) -> None:
        self.folder = model
        tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self.text, test = (_rows(tokenizer, data / f"{name}.txt") for name in ("validation", "test"))
        self.test = test[torch.linspace(0, len(test) - 1, report).long()]

    def model(self) -> Any:
        """Return the base model."""
        return AutoModelForCausalLM.from_pretrained(self.folder)

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield training batches for ever."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            rows = self.text[torch.randint(len(self.text), (BATCH,), generator=generator)]
            yield {"input_ids": rows, "labels": rows}

    def probe(self, seed: int, count: int) -> list[Batch]:
        """Return batches to score on; other draws of the training text than a run's with the same seed."""
        batches = self.batches(10_000 + seed)
        return [next(batches) for _ in range(count)]

    @torch.no_grad()
    def loss(self, model: Any) -> float:
        """Return the mean test loss per predicted token; every row predicts as many."""
        model.eval()
        losses = [model(input_ids=rows, labels=rows).loss.double() * len(rows) for rows in self.test.split(32)]
        return float(torch.stack(losses).sum() / len(self.test))


def _rows(tokenizer: Any, file: Path) -> torch.Tensor:
    ids = torch.tensor(tokenizer(file.read_text(encoding="utf-8"), verbose=False)["input_ids"])
    return ids[: len(ids) // ROW * ROW].view(-1, ROW)
