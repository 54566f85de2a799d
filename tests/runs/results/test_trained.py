"""What a finished run trained, loaded again: the adapter on its base, the base alone, or the whole model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForSequenceClassification

import rankwise  # noqa: F401 (registers the methods that the kept adapters are of)
from rankwise.runs.folder import RunFolder
from rankwise.runs.results.trained import load_trained, trained_spec

KEPT = Path(__file__).resolve().parents[2] / "data" / "version-0.1"


@pytest.fixture(params=["heterolora", "lor2c"])
def room(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of each method, as the current folder: its recipe names the model relative to it."""
    copied = Path(shutil.copytree(KEPT / request.param, tmp_path / "room"))
    monkeypatch.chdir(copied)
    return copied


@torch.no_grad()
def logits(model: Any) -> Tensor:
    ids = torch.randint(4, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    found: Tensor = model(input_ids=ids).logits
    return found


def test_the_adapter_lies_on_its_base(room: Path) -> None:
    model = load_trained(RunFolder(room / "finished"))
    base = AutoModelForSequenceClassification.from_pretrained(room / "room" / "model", pad_token_id=0, num_labels=2)
    by_hand = PeftModel.from_pretrained(base, str(room / "finished" / "adapter")).eval()
    assert torch.equal(logits(model), logits(by_hand))
    assert not any(module.training for module in model.modules())
    assert next(model.parameters()).dtype == torch.float32
    assert model.get_base_model().config.id2label == {0: "not_equivalent", 1: "equivalent"}


def test_the_base_alone_has_nothing_of_the_adapter(room: Path) -> None:
    base = load_trained(RunFolder(room / "finished"), base=True)
    assert not isinstance(base, PeftModel)
    assert not [name for name, _ in base.named_parameters() if "lora" in name]
    assert not base.training


def test_a_run_that_is_none_or_not_finished_is_refused(room: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone holds no run: config\.yaml is missing"):
        load_trained(RunFolder(tmp_path / "gone"))
    with pytest.raises(ValueError, match=r"interrupted is not finished: continue it with"):
        load_trained(RunFolder(room / "interrupted"))
    shutil.rmtree(room / "room")
    with pytest.raises(ValueError, match=r"model\.name='room/model' can't be loaded"):
        load_trained(RunFolder(room / "finished"))


def test_a_runs_own_folder_is_named_as_a_model(room: Path) -> None:
    folder = RunFolder(Path("finished"))
    spec = trained_spec(folder)
    assert spec.name == str(room / "finished" / "adapter")
    assert (spec.revision, spec.chat_template, spec.dtype) == (None, None, folder.recipe().model.dtype)
    assert folder.recipe().model.name == "room/model"
