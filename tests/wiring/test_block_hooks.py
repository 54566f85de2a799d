"""Shortcuts and what PEFT's users do with an adapter: save, load, copy, set aside, combine, merge, take off."""

from __future__ import annotations

import copy
import io
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.helpers import rescale_adapter_scale
from safetensors.torch import load_file
from tests.families import FAMILIES
from tests.models import fill_, keep_only_, logits
from tests.shortcuts import FIVE, POST, base_logits, batches, half_on_, made, names, on, own_hooks, second
from torch import nn

import rankwise

VARIANTS = [(name, "inside") for name in FIVE] + [(name, "reapply") for name in POST]


def trained(name: str, **fields: Any) -> Any:
    """Train a few steps with a search that reallocates; every path has moved or may come to."""
    model = made(name, mode="dynamic", budget=0.5, search_every=2, score_batches=2, proxy="constant", **fields).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for batch in batches(name, 5):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len({tuple(record["chosen"]) for record in rankwise.history(model)}) > 1
    rankwise.detach(model)
    return model.eval()


def shape(model: nn.Module) -> list[tuple[str, bool, tuple[int, int], int, float]]:
    paths = rankwise.named_paths(model).items()
    return [(name, path.enabled, path.blocks, path.r, path.scaling) for name, path in paths]


def order(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


# Saved and loaded.


@pytest.mark.parametrize(("name", "norm"), VARIANTS)
def test_trained_saved_and_loaded_it_is_the_same(name: str, norm: str, tmp_path: Path) -> None:
    model = trained(name, shortcut_norm=norm, shortcut_r=3, shortcut_alpha=5.0)
    expected = logits(model)
    assert not torch.allclose(expected, base_logits(name), atol=1e-3)
    for folder, options in (("all", {}), ("lean", {"enabled_only": True})):
        model.save_pretrained(str(tmp_path / folder), **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            loaded = PeftModel.from_pretrained(FAMILIES[name](), tmp_path / folder)
        assert torch.equal(logits(loaded), expected)
        assert shape(loaded) == shape(model)
        assert order(loaded) == order(model), "an optimizer's state is by position"
    plain = FAMILIES[name]()
    plain.load_adapter(str(tmp_path / "all"))
    assert torch.equal(logits(plain), expected)
    assert shape(plain) == shape(model)
    stored = load_file(tmp_path / "lean" / "adapter_model.safetensors")
    assert len([key for key in stored if ".lora_B." in key]) == len(on(model)) < len(names(model))


def test_the_config_file_tells_of_the_shortcuts(tmp_path: Path) -> None:
    model = made("bert", shortcuts=["cut", "res1"], shortcut_alpha=3, shortcut_norm="reapply", shortcut_dropout=0.25)
    model.save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    found = {key: config[key] for key in config if key.startswith("shortcut")}
    assert found == {
        "shortcuts": ["res1", "cut"],  # in one order, however they were given
        "shortcut_r": None,
        "shortcut_ranks": None,
        "shortcut_alpha": 3,
        "shortcut_dropout": 0.25,
        "shortcut_norm": "reapply",
    }
    assert config["rankwise_version"]
    loaded = rankwise.HeteroLoraConfig.from_pretrained(str(tmp_path))
    assert loaded.block_paths()[1:3] == (2, 3)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_shortcuts_alone(name: str, tmp_path: Path) -> None:
    model = made(name, target_modules=[])
    assert names(model, "linear") == []
    expected = logits(model)
    model.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == []
    loaded = PeftModel.from_pretrained(FAMILIES[name](), tmp_path)
    assert torch.equal(logits(loaded), expected)
    plain = FAMILIES[name]()
    plain.load_adapter(str(tmp_path))
    assert torch.equal(logits(plain), expected)
    assert torch.equal(logits(loaded.unload()), base_logits(name))


@pytest.mark.parametrize("name", FIVE)
def test_a_model_on_the_meta_device_is_filled_by_loading(name: str, tmp_path: Path) -> None:
    model = made(name)
    half_on_(model)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(FAMILIES[name](), tmp_path, low_cpu_mem_usage=True)
    assert shape(loaded) == shape(model)
    assert order(loaded) == order(model)
    assert not [key for key, value in loaded.state_dict().items() if value.is_meta]
    assert torch.equal(logits(loaded), logits(model))


def test_a_state_dict_brings_weights_and_structure_back() -> None:
    model, other = made("opt-post"), made("opt-post", filled=False)
    half_on_(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert shape(other) == shape(model)
    assert torch.equal(logits(other), logits(model))


def test_transformers_own_way_to_add_switch_and_delete(tmp_path: Path) -> None:
    config = rankwise.HeteroLoraConfig(r=2, mode="off", target_modules=["q_proj"], shortcuts=["res1", "cut"])
    model = FAMILIES["llama"]()
    model.add_adapter(config)
    fill_(model)
    expected = logits(model)
    model.save_pretrained(str(tmp_path))
    loaded = FAMILIES["llama"]()
    loaded.load_adapter(str(tmp_path))
    assert torch.equal(logits(loaded), expected)
    model.disable_adapters()
    assert torch.equal(logits(model), base_logits("llama"))
    model.enable_adapters()
    assert torch.equal(logits(model), expected)
    model.delete_adapter("default")
    assert torch.equal(logits(model), base_logits("llama"))


# Adapters beside each other.


@pytest.mark.parametrize("name", FIVE)
def test_adapters_of_other_kinds_live_side_by_side(name: str, tmp_path: Path) -> None:
    model = made(name)
    half_on_(model)
    first = logits(model)
    chosen = on(model)
    second(model, shortcut_norm="reapply" if name in POST else "inside")
    assert torch.equal(logits(model), first), "one that is not active changes nothing"
    model.set_adapter("second")
    other = logits(model)
    assert not torch.allclose(other, first, atol=1e-3)
    assert {path.kind for path in rankwise.named_paths(model).values()} == {"res2", "cut"}
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    assert on(model) == chosen
    with model.disable_adapter():
        assert torch.equal(logits(model), base_logits(name))
    assert torch.equal(logits(model), first)
    model.save_pretrained(str(tmp_path))
    assert torch.equal(logits(PeftModel.from_pretrained(FAMILIES[name](), tmp_path / "second")), other)
    model.set_adapter("second")
    model.delete_adapter("default")
    assert torch.equal(logits(model), other)
    assert not [key for key in model.state_dict() if ".default" in key and "modules_to_save" not in key]
    second(model, "third", shortcuts=["res1"])
    assert torch.equal(logits(model), other)


def test_two_active_adapters_with_other_norms_both_act() -> None:
    model = made("opt-post")
    second(model, shortcut_norm="reapply")
    one = logits(model)
    model.base_model.set_adapter(["default", "second"])
    both = logits(model)
    model.base_model.set_adapter(["second"])
    assert not torch.allclose(both, one, atol=1e-3)
    assert not torch.allclose(both, logits(model), atol=1e-3)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_an_adapter_from_the_same_config_object_takes_over_the_structure(name: str) -> None:
    """DPO makes its reference adapter this way and copies parameters only."""
    model = made(name, mode="dynamic", budget=0.5)
    half_on_(model)
    model.add_adapter("reference", model.peft_config["default"])
    assert on(model, "reference") == on(model)
    with torch.no_grad():
        for path, copied in zip(
            rankwise.named_paths(model).values(), rankwise.named_paths(model, "reference").values(), strict=True
        ):
            copied.lora_A.copy_(path.lora_A)
            copied.lora_B.copy_(path.lora_B)
    expected = logits(model)
    model.set_adapter("reference")
    assert torch.equal(logits(model), expected)


def test_scaling_an_adapter_scales_its_shortcuts() -> None:
    model = made("llama")
    expected = logits(model)
    with rescale_adapter_scale(model, 0.0):
        torch.testing.assert_close(logits(model), base_logits("llama"))
    assert torch.equal(logits(model), expected)


NORMS = {"bert": "LayerNorm", "opt-pre": "final_layer_norm", "llama": "post_attention_layernorm"}


@pytest.mark.parametrize("name", NORMS)
def test_norms_that_are_trained_whole(name: str, tmp_path: Path) -> None:
    model = made(name, modules_to_save=[NORMS[name]])
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "modules_to_save" in key and NORMS[name] in key:
                parameter.add_(0.5)
    assert not torch.allclose(logits(model), logits(made(name)), atol=1e-3)
    model.save_pretrained(str(tmp_path))
    assert torch.equal(logits(PeftModel.from_pretrained(FAMILIES[name](), tmp_path)), logits(model))


@pytest.mark.parametrize("name", NORMS)
def test_norms_that_a_second_adapter_trains_whole(name: str) -> None:
    model = made(name)
    expected = logits(model)
    config = copy.copy(model.peft_config["default"])
    config.modules_to_save = [NORMS[name], *(config.modules_to_save or [])]
    model.add_adapter("second", config)
    with torch.no_grad():
        for path, own in zip(
            rankwise.named_paths(model, "second").values(), rankwise.named_paths(model).values(), strict=True
        ):
            path.lora_A.copy_(own.lora_A)
            path.lora_B.copy_(own.lora_B)
    model.set_adapter("second")
    torch.testing.assert_close(logits(model), expected)


# Copies.


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_stands_on_its_own(name: str, how: str) -> None:
    model = made(name)
    expected = logits(model)
    twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))  # noqa: S301
    assert torch.equal(logits(twin), expected)
    for path in rankwise.named_paths(twin).values():
        with torch.no_grad():
            path.lora_B.mul_(3.0)
    assert torch.equal(logits(model), expected)
    assert not torch.allclose(logits(twin), expected, atol=1e-3)
    twin.train()(**batches(name)[0]).loss.backward()
    assert all(path.lora_A.grad is None for path in rankwise.named_paths(model).values())
    assert all(path.lora_A.grad is not None for path in rankwise.named_paths(twin).values())
    keep_only_(twin)
    assert torch.equal(logits(twin), base_logits(name))
    assert torch.equal(logits(model), expected)
    bare = twin.unload()
    assert own_hooks(bare) == []
    assert torch.equal(logits(model), expected), "taking the copy apart leaves the original alone"
