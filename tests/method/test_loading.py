"""What a file of tensors has to hold to be loaded: the names, shapes and sorts of the model it is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tests.models import fill_, logits, tiny_bert
from torch import Tensor

import rankwise

CONFIGS: dict[str, Callable[[], Any]] = {
    "heterolora": lambda: rankwise.HeteroLoraConfig(
        task_type="SEQ_CLS", r=2, target_modules=["query", "value"], shortcuts=["res1"], budget=0.5, mode="dynamic"
    ),
    "lor2c": lambda: rankwise.Lor2cConfig(
        task_type="SEQ_CLS", r=2, merges=1, injections=1, edit_unit="steps", total_steps=8, metric="mean_sv"
    ),
}


def saved(folder: Path, method: str = "heterolora") -> PeftModel:
    model = get_peft_model(tiny_bert(3), CONFIGS[method]())
    fill_(model)
    model.save_pretrained(str(folder))
    return model


def load(folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(tiny_bert(3), str(folder))


def accept(folder: Path) -> None:
    """Do what the message says about files that were changed on purpose."""
    file = folder / "allocation.json"
    listed = json.loads(file.read_text())
    del listed["sha256"]
    file.write_text(json.dumps(listed))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def change_config(folder: Path, **fields: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensor: tensor.to(torch.int32), "torch.int32 but this model's is torch.float32"),
        (lambda tensor: torch.full_like(tensor, float("nan")), "hold NaN or infinity"),
        (lambda tensor: tensor[:1].contiguous(), "but this model's is"),
    ],
)
def test_tensors_that_no_training_makes_are_refused(
    tmp_path: Path, change: Callable[[Tensor], Tensor], words: str
) -> None:
    saved(tmp_path)

    def changed(tensors: dict[str, Tensor]) -> None:
        key = next(key for key in tensors if key.endswith("query.lora_A.weight"))
        tensors[key] = change(tensors[key])

    change_tensors(tmp_path, changed)
    accept(tmp_path)
    with pytest.raises(ValueError, match=words):
        load(tmp_path)


@pytest.mark.parametrize("change", [0.0, 0.5])
def test_a_file_with_every_blocks_a_loads_where_they_are_one(tmp_path: Path, change: float) -> None:
    """As tools write it that save what a model has, module by module."""
    model = get_peft_model(tiny_bert(3), rankwise.Lor2cConfig(task_type="SEQ_CLS", r=2, share=True))
    fill_(model)
    model.save_pretrained(str(tmp_path))

    def spread(tensors: dict[str, Tensor]) -> None:
        (key,) = [key for key in tensors if "layer_paths.0.lora_A." in key]
        for block in (1, 2):
            tensors[key.replace("layer_paths.0.", f"layer_paths.{block}.")] = tensors[key] + change * (block == 2)

    change_tensors(tmp_path, spread)
    accept(tmp_path)
    if change:
        with pytest.raises(ValueError, match=r"holds 3 lora_A that differ, .*with share=True all blocks have one"):
            load(tmp_path)
    else:
        assert torch.equal(logits(load(tmp_path)), logits(model))
