"""What stands between a damaged adapter folder and a model: types, digests, records that can't be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tests.models import fill_, logits, tiny_bert
from torch import Tensor

import rankwise
from rankwise.rules.edits import Enable, Merge

CONFIGS: dict[str, Callable[[], Any]] = {
    "heterolora": lambda: rankwise.HeteroLoraConfig(
        task_type="SEQ_CLS", r=2, target_modules=["query", "value"], shortcuts=["res1"], budget=0.5
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


@pytest.mark.parametrize("method", CONFIGS)
def test_a_flipped_bit_is_told_and_can_be_accepted(tmp_path: Path, method: str) -> None:
    model = saved(tmp_path, method)
    torch.testing.assert_close(logits(load(tmp_path)), logits(model), rtol=0, atol=0)
    file = tmp_path / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is not as it was saved.*delete 'sha256' from"):
        load(tmp_path)
    accept(tmp_path)
    load(tmp_path)


def test_settings_are_sealed_and_places_are_not(tmp_path: Path) -> None:
    saved(tmp_path)
    change_config(tmp_path, base_model_name_or_path="elsewhere", revision="main")
    load(tmp_path)
    change_config(tmp_path, lora_alpha=99)
    with pytest.raises(ValueError, match=r"adapter_config\.json is not as it was saved"):
        load(tmp_path)
    accept(tmp_path)
    load(tmp_path)


def test_a_second_save_into_the_same_folder_is_the_one_that_counts(tmp_path: Path) -> None:
    saved(tmp_path)
    model = saved(tmp_path, "lor2c")
    torch.testing.assert_close(logits(load(tmp_path)), logits(model), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("r", "2", "r='2' must be an int"),
        ("r", None, "r=None must be an int"),
        ("r", 2.5, "r=2.5 must be an int"),
        ("lora_alpha", "16", "lora_alpha='16' must be a float"),
        ("lora_dropout", [], "lora_dropout=[] must be a float"),
        ("target_modules", 3, "target_modules=3 must be"),
        ("target_modules", [3], "target_modules=[3] must be"),
        ("rank_pattern", [], "rank_pattern=[] must be a dict"),
        ("shortcuts", "res1", "shortcuts='res1' must be a list of a str"),
        ("shortcuts", [["res1"]], "shortcuts=[['res1']] must be"),
        ("budget", "0.5", "budget='0.5' must be"),
        ("budget", 1.5, "must lie in [0, 1]"),
        ("seed", "x", "seed='x' must be an int"),
        ("modules_to_save", {"a": 1}, "modules_to_save="),
        ("proxy", 3, "proxy=3 must be a str"),
    ],
)
def test_a_setting_of_the_wrong_type_is_named(tmp_path: Path, field: str, value: Any, words: str) -> None:
    saved(tmp_path)
    change_config(tmp_path, **{field: value})
    with pytest.raises(ValueError, match=r"adapter_config\.json") as caught:
        load(tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", '{"peft_type": 3}', '{"peft_type": "HETEROLRA"}', "{"])
def test_a_config_that_is_none_names_its_file(tmp_path: Path, content: str) -> None:
    saved(tmp_path)
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("allocation.json", "[]"),
        ("allocation.json", '{"sha256": 3}'),
        ("allocation.json", '{"sha256": {"adapter_model.safetensors": 3}}'),
        ("search_history.jsonl", "{}\n"),
        ("search_history.jsonl", "nonsense\n"),
    ],
)
def test_what_lies_beside_the_weights_is_named_too(tmp_path: Path, name: str, content: str) -> None:
    saved(tmp_path)
    if name != "allocation.json":
        accept(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        load(tmp_path)


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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensor: tensor.to(torch.int32), "torch.int32 but this model's is torch.float32"),
        (lambda tensor: torch.full_like(tensor, float("nan")), "hold NaN or infinity"),
        (lambda tensor: torch.full_like(tensor, float("inf")), "hold NaN or infinity"),
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


def test_a_path_that_is_on_has_its_weights(tmp_path: Path) -> None:
    model = saved(tmp_path)
    on = next(path for path in rankwise.named_paths(model).values() if path.enabled and path.kind == "linear")

    def dropped(tensors: dict[str, Tensor]) -> None:
        del tensors[f"base_model.model.{on.module}.lora_B.weight"]

    change_tensors(tmp_path, dropped)
    accept(tmp_path)
    with pytest.raises(ValueError, match=f"the adapter lacks .*, although {on.own_name} is on"):
        load(tmp_path)


def test_other_methods_folders_are_left_to_peft(tmp_path: Path) -> None:
    plain = get_peft_model(tiny_bert(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    plain.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(tiny_bert(), str(tmp_path))
    torch.testing.assert_close(logits(loaded), logits(plain), rtol=0, atol=0)
