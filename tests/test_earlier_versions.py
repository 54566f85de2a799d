"""What version 0.1 wrote, on disk as it wrote it, still loads, resumes and is read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import rankwise
from rankwise.report import read_history
from rankwise.rules.records import edits, searches
from rankwise.runs.folder import RunFolder
from rankwise.runs.results.pictures import write_report
from rankwise.runs.training.train import train

WRITTEN = Path(__file__).parent / "data" / "version-0.1"
METHODS = ("heterolora", "lor2c")


@pytest.fixture(params=METHODS)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of one method's files, as the current folder: the recipe names its model and data relative to it."""
    copied = tmp_path / request.param
    shutil.copytree(WRITTEN / request.param, copied)
    monkeypatch.chdir(copied)
    return copied


def test_an_adapter_loads_with_its_structure_and_history(place: Path) -> None:
    adapter = place / "finished" / "adapter"
    base = AutoModelForSequenceClassification.from_pretrained(place / "room" / "model")
    model = PeftModel.from_pretrained(base, str(adapter))
    saved = load_file(adapter / "adapter_model.safetensors")
    for path in rankwise.named_paths(model).values():
        assert torch.equal(path.lora_A, saved[f"base_model.model.{path.module}.lora_A.weight"])
        assert torch.equal(path.lora_B, saved[f"base_model.model.{path.module}.lora_B.weight"])
    assert len(rankwise.history(model)) == len((adapter / "search_history.jsonl").read_text().splitlines())


def test_an_interrupted_run_ends_as_it_would_have_then(place: Path) -> None:
    folder = RunFolder(place / "interrupted")
    train(folder.recipe(), place / "interrupted", resume=True)
    resumed = load_file(place / "interrupted" / "adapter" / "adapter_model.safetensors")
    expected = load_file(place / "finished" / "adapter" / "adapter_model.safetensors")
    assert set(resumed) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-5, atol=1e-7)
    then, now = (read_history(RunFolder(place / name).history) for name in ("finished", "interrupted"))
    assert [record.step for record in searches(now)] == [record.step for record in searches(then)]
    assert [(each.due, each.step) for each in edits(now)] == [(each.due, each.step) for each in edits(then)]
    assert [record.chosen for record in now] == [record.chosen for record in then] != []


def test_a_finished_run_is_drawn(place: Path) -> None:
    assert write_report([place / "finished"], place / "pictures")
