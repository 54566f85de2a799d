"""Which records of what is on can be, and which weights they need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.method.test_loading import CONFIGS, accept, change_tensors, load, saved
from tests.models import adapted, fill_, keep_only_, logits, tiny_bert
from torch import Tensor

import rankwise
from rankwise.method.structure import check_unvouched
from rankwise.paths.path_set import path_set
from rankwise.rules.edits import Enable, Merge


def record(folder: Path, module: str, *values: int) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        (key,) = [key for key in tensors if key.endswith("lora_allocation") and f"{module}." in key]
        tensors[key] = torch.tensor(values)

    change_tensors(folder, change)
    accept(folder)


@pytest.mark.parametrize(
    ("method", "module", "values", "words"),
    [
        ("heterolora", "layer.0.attention.self.query", (1, 1, 0, 0, 0), "what is enabled is available"),
        ("heterolora", "layer.0.attention.self.query", (1, 0, 0, 0, 1), "what is enabled is available and contributes"),
        ("heterolora", "layer.0.attention.self.query", (0, 1, 0, 0, 0), "off for good does not contribute"),
        ("heterolora", "layer.0.attention.self.query", (2, 1, 0, 0, 1), "are 0 or 1"),
        ("heterolora", "layer.0.attention.self.query", (0, 0, 1, 1, 1), "its blocks are 0 to 0"),
        ("lor2c", "layer_paths.1", (1, 1, 2, 2, 1), "its span must hold block 1"),
        ("lor2c", "layer_paths.1", (1, 1, 2, 0, 1), "its span must hold block 1"),
        ("lor2c", "layer_paths.1", (1, 1, 1, 2, 1), "both span block 2"),
        ("lor2c", "layer_paths.1", (1, 1, 0, 1, 1), "both span block"),
        ("lor2c", "layer_paths.1", (0, 0, 0, 1, 0), "its blocks are 1 to 1"),
    ],
)
def test_a_record_that_no_edits_lead_to_is_refused(
    tmp_path: Path, method: str, module: str, values: tuple[int, ...], words: str
) -> None:
    saved(tmp_path, method)
    record(tmp_path, module, *values)
    with pytest.raises(ValueError, match="the adapter's record"):
        load(tmp_path)
    with pytest.raises(ValueError, match=words):
        load(tmp_path)


def test_records_that_edits_lead_to_load(tmp_path: Path) -> None:
    model = get_peft_model(tiny_bert(3), CONFIGS["lor2c"]())
    fill_(model)
    rankwise.apply_(model, [Merge("layers.0.layer", "layers.1.layer"), rankwise.Inject("layers.2.layer")])
    model.save_pretrained(str(tmp_path))
    accept(tmp_path)
    torch.testing.assert_close(logits(load(tmp_path)), logits(model), rtol=0, atol=0)


def test_more_than_the_budget_is_refused_unless_it_was_saved_so(tmp_path: Path) -> None:
    model = get_peft_model(tiny_bert(3), CONFIGS["heterolora"]())
    rankwise.apply_(model, [Enable(name) for name in rankwise.named_paths(model)])
    model.save_pretrained(str(tmp_path))
    assert all(path.enabled for path in rankwise.named_paths(load(tmp_path)).values())
    accept(tmp_path)
    with pytest.raises(ValueError, match=r"parameters on, more than the \d+ of budget=0\.5.*raise budget"):
        load(tmp_path)


def test_a_path_that_is_on_has_its_weights(tmp_path: Path) -> None:
    model = saved(tmp_path)
    on = next(path for path in rankwise.named_paths(model).values() if path.enabled and path.kind == "linear")

    def dropped(tensors: dict[str, Tensor]) -> None:
        del tensors[f"base_model.model.{on.module}.lora_B.weight"]

    change_tensors(tmp_path, dropped)
    accept(tmp_path)
    with pytest.raises(ValueError, match=f"the adapter lacks .*, although {on.own_name} is on"):
        load(tmp_path)


def sharing(folder: Path, *edits: Any) -> PeftModel:
    """Save a LoR2C adapter whose blocks share one ``A``."""
    config = rankwise.Lor2cConfig(task_type="SEQ_CLS", r=2, share=True, merges=1, edit_unit="steps", total_steps=8)
    model = get_peft_model(tiny_bert(3), config)
    assert isinstance(model, PeftModel)
    fill_(model)
    rankwise.apply_(model, edits)
    model.save_pretrained(str(folder), enabled_only=True)
    return model


def without(folder: Path, ending: str) -> None:
    def dropped(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if key.endswith(ending)]:
            del tensors[key]

    change_tensors(folder, dropped)
    accept(folder)


@pytest.mark.parametrize("edits", [(), (Merge("layers.0.layer", "layers.1.layer", "layers.1.layer"),)])
def test_one_shared_a_is_enough_for_all_blocks(tmp_path: Path, edits: Any) -> None:
    model = sharing(tmp_path, *edits)
    accept(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(model))


@pytest.mark.parametrize("lost", ["layer_paths.1.lora_B.weight", ".lora_A.weight"])
def test_a_shared_a_stands_for_no_b_and_has_to_be_there(tmp_path: Path, lost: str) -> None:
    sharing(tmp_path)
    without(tmp_path, lost)
    with pytest.raises(
        ValueError, match=r"the adapter lacks '.*lora_[AB]\.default\.weight', although layers\.\d\.layer"
    ):
        load(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_weights_that_no_training_makes_are_refused(factor: str, value: float) -> None:
    model = adapted(tiny_bert(1), target_modules=["query", "value"])
    fill_(model)
    check_unvouched(path_set(model))
    path = rankwise.named_paths(model)["layers.0.value"]
    with torch.no_grad():
        getattr(path, factor)[0, 1] = value
    with pytest.raises(ValueError, match=r"weights of layers\.0\.value hold NaN or infinity: the file is damaged"):
        check_unvouched(path_set(model))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"budget": 64}, "has 128 parameters on, more than the 64 of budget=64: .*raise budget in adapter_config.json"),
        ({"budget": 0.5, "budget_unit": "paths"}, r"has 2 paths on, more than the 1 of budget=0\.5"),
    ],
)
def test_more_than_the_budget_is_counted_in_its_unit(fields: dict[str, Any], words: str) -> None:
    model = adapted(tiny_bert(1), target_modules=["query", "value"], mode="dynamic", **fields)
    check_unvouched(path_set(model))
    keep_only_(model, "layers.0.query", "layers.0.value")
    with pytest.raises(ValueError, match=words):
        check_unvouched(path_set(model))


def test_where_nothing_is_searched_no_budget_holds() -> None:
    model = adapted(tiny_bert(1), target_modules=["query", "value"], mode="off", budget=2)
    check_unvouched(path_set(model))
    lor2c = get_peft_model(tiny_bert(2), rankwise.Lor2cConfig(r=2, merges=1, edit_unit="steps", total_steps=8))
    check_unvouched(path_set(lor2c))
