"""The search's two files in a checkpoint, as plain Trainer reads them back: whole, or one error that names the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from tests.models import adapted, tiny_bert
from torch import Tensor
from transformers import Trainer, TrainingArguments

from rankwise.search.checkpoint import STATE, SUMS


class Examples(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Random token rows with labels, a function of their index."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {"input_ids": torch.randint(4, 40, (6,), generator=generator), "labels": torch.tensor(index % 2)}


def trainer(out: Path) -> Trainer:
    model: PeftModel = adapted(
        tiny_bert(),
        task_type="SEQ_CLS",
        target_modules=["query", "value"],
        mode="dynamic",
        budget=0.5,
        search_every=5,
        score_batches=2,
    )
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=4,
        max_steps=6,
        save_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    return Trainer(model=model, args=arguments, train_dataset=Examples())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    trainer(out).train()
    return out / "checkpoint-4"


@pytest.fixture
def checkpoint(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "checkpoint-4"))


def resume(checkpoint: Path) -> None:
    trainer(checkpoint.parent).train(resume_from_checkpoint=str(checkpoint))


def test_whole_files_resume(checkpoint: Path) -> None:
    resume(checkpoint)
    whole = json.loads((checkpoint / STATE).read_text())
    assert whole["step"] == 4
    assert whole["window_steps"] > 0
    assert (checkpoint / SUMS).stat().st_size > 100


@pytest.mark.parametrize("content", ["{}", "[]", "null", "", '{"step": 4,', "[" * 3000, "\udcff"])
def test_state_that_is_none_names_its_file(checkpoint: Path, content: str) -> None:
    (checkpoint / STATE).write_text(content, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"rankwise_search\.json is damaged.*copy the checkpoint again"):
        resume(checkpoint)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("step", "4", "'step' is '4' and no count"),
        ("step", -1, "'step' is -1 and no count"),
        ("step", True, "'step' is True and no count"),
        ("history", [{"step": 5, "search": 0, "proxy": "random"}], "its history goes beyond its step 4"),
        ("searches", 9, "'searches' is 9, but the history holds 1"),
        ("window_steps", None, "'window_steps' is None and no count"),
        ("tap_seconds", float("nan"), "'tap_seconds' is nan and no time"),
        ("tap_seconds", "1", "'tap_seconds' is '1' and no time"),
        ("history", {}, "'history' is {} and no list"),
        ("history", [3], "a record is a JSON object, got 3"),
        ("history", [{"step": "x"}], "field 'step'"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(checkpoint: Path, field: str, value: Any, words: str) -> None:
    state = json.loads((checkpoint / STATE).read_text())
    (checkpoint / STATE).write_text(json.dumps({**state, field: value}))
    with pytest.raises(ValueError, match=r"rankwise_search\.json is damaged") as caught:
        resume(checkpoint)
    assert words in str(caught.value)


@pytest.mark.parametrize("field", ["step", "tap_seconds", "history", "searches", "window_steps"])
def test_a_field_that_is_missing_is_named(checkpoint: Path, field: str) -> None:
    state = json.loads((checkpoint / STATE).read_text())
    del state[field]
    (checkpoint / STATE).write_text(json.dumps(state))
    with pytest.raises(ValueError, match=rf"rankwise_search\.json is damaged.*'{field}'"):
        resume(checkpoint)


def test_sums_that_were_changed_or_are_gone_are_told(checkpoint: Path) -> None:
    whole = (checkpoint / SUMS).read_bytes()
    changed = bytearray(whole)
    changed[-1] ^= 1
    (checkpoint / SUMS).write_bytes(changed)
    with pytest.raises(ValueError, match=r"rankwise_search\.safetensors is not as it was saved"):
        resume(checkpoint)
    (checkpoint / SUMS).unlink()
    with pytest.raises(FileNotFoundError, match=r"rankwise_search\.safetensors is missing"):
        resume(checkpoint)


@pytest.mark.slow
def test_sums_without_a_digest_as_version_0_1_wrote_them(checkpoint: Path) -> None:
    state = json.loads((checkpoint / STATE).read_text())
    del state["sums_sha256"]
    (checkpoint / STATE).write_text(json.dumps(state))
    resume(checkpoint)
    for name, tensor in {"x": torch.ones(1), "finite/layers.0.query": torch.ones(1, dtype=torch.int32)}.items():
        save_file({name: tensor}, checkpoint / SUMS)
        with pytest.raises(ValueError, match=f"is damaged, '{name}' is no sum of a search"):
            resume(checkpoint)
    (checkpoint / SUMS).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        resume(checkpoint)


def test_a_damaged_adapter_of_a_checkpoint_is_told(checkpoint: Path) -> None:
    file = checkpoint / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is not as it was saved"):
        resume(checkpoint)
