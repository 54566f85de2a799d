"""Damaged adapter and run folders: no raw error, no hang, nothing silently different. ``tools/fuzz.py`` tries more."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from tests.damage import adapter_outcome, damage, resume_outcome, save_adapters, save_runs, use_outcome
from tests.models import logits, tiny_bert
from torch import Tensor

FEW = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
FEWER = settings(FEW, max_examples=6)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Tensor]]:
    found = save_adapters(tmp_path_factory.mktemp("adapters"))
    return {
        name: (folder, logits(PeftModel.from_pretrained(tiny_bert(4), str(folder)))) for name, folder in found.items()
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    return save_runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.slow
@FEW
@given(data=st.data(), name=st.sampled_from(["heterolora", "lor2c", "heterolora-0.1", "lor2c-0.1"]))
def test_a_damaged_adapter_is_the_same_or_refused(
    adapters: dict[str, tuple[Path, Tensor]], data: Any, name: str
) -> None:
    folder, expected = adapters[name]
    with tempfile.TemporaryDirectory() as room:
        copy = shutil.copytree(folder, Path(room) / "adapter")
        told = damage(data.draw, copy)
        outcome = adapter_outcome(copy, expected)
    # Without digests a changed number can't be told from a trained one.
    assert outcome in ("same", "refused") or name.endswith("0.1") or told.startswith("allocation.json"), told


@pytest.mark.slow
@FEWER
@given(data=st.data())
def test_a_damaged_run_goes_on_as_if_nothing_had_been_or_is_refused(
    runs: tuple[Path, dict[str, Path]], data: Any
) -> None:
    recipe, folders = runs
    with tempfile.TemporaryDirectory() as room:
        copy = shutil.copytree(folders["interrupted"], Path(room) / "run")
        told = damage(data.draw, copy)
        assert resume_outcome(recipe, copy, folders["finished"]) in ("same", "refused"), told


@pytest.mark.slow
@FEWER
@given(data=st.data())
def test_a_damaged_finished_run_is_used_or_refused(runs: tuple[Path, dict[str, Path]], data: Any) -> None:
    _, folders = runs
    with tempfile.TemporaryDirectory() as room:
        copy = shutil.copytree(folders["finished"], Path(room) / "run", ignore=shutil.ignore_patterns("checkpoints"))
        damage(data.draw, copy)
        assert use_outcome(copy) in ("done", "refused")
