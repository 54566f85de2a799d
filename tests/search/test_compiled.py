"""Searching under ``torch.compile``: graphs break at the taps, and scores are those of an eager run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.search.test_callback import searching, trainer

import rankwise
from rankwise.rules.records import SearchRecord


@pytest.fixture(autouse=True)
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8):  # torch's own, which a search raises
        yield
    torch._dynamo.reset()


def searches_of(out: Path, **arguments: Any) -> list[SearchRecord]:
    """Train with windows of one step in which every path is scored by its gradient, shortcuts too."""
    model = searching(shortcuts=["res1", "cut"], search_every=2, score_batches=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*no finite score")
        trainer(model, out, learning_rate=1e-3, **arguments).train()
    return rankwise.history(model)  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo's own look at a tap's result
@pytest.mark.parametrize(("backend", "how"), [("eager", {}), ("aot_eager", {"activation_checkpointing": True})])
def test_a_compiled_run_scores_and_chooses_as_an_eager_one(backend: str, how: dict[str, Any], tmp_path: Path) -> None:
    eager = searches_of(tmp_path, **how)
    compiled = searches_of(tmp_path, torch_compile=True, torch_compile_backend=backend, **how)
    assert [(record.step, record.how) for record in compiled] == [(0, "probe"), *((n, "online") for n in (2, 4, 6))]
    for ours, theirs in zip(compiled, eager, strict=True):
        assert ours.chosen == theirs.chosen
        assert ours.scores == pytest.approx(theirs.scores, rel=1e-2)
        assert all(score and score > 0 for score in ours.scores.values())
