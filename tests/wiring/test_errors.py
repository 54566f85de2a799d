"""What shortcuts refuse, in words that say what was given, what is allowed and what to change."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.families import FAMILIES
from tests.models import logits
from tests.shortcuts import made, names, own_hooks

import rankwise
from rankwise.method.folders import ALLOCATION

# Kinds that a model can't have.


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("llama", {"shortcuts": ["in", "layer"]}, "names 'in' and 'layer', which are the same path.*name one of them"),
        ("opt-pre", {"shortcut_norm": "reapply"}, "shortcut_norm='reapply'.*use shortcut_norm='inside'"),
        ("gemma2", {"shortcut_norm": "reapply", "shortcuts": ["res1"]}, "use shortcut_norm='inside'"),
        ("llama", {"layers_to_transform": [7]}, r"layers_to_transform=\[7\] names block 7, and .* blocks 0 to 2"),
        ("bert", {"layers_to_transform": 0, "shortcuts": ["cut"]}, r"\['cut'\] with .*=0 leaves no path"),
        ("llama", {"rank_budget": 10}, "rank_budget=10 .* leaves less than rank 1.*name fewer shortcuts"),
    ],
)
def test_what_a_model_cannot_have_is_refused_and_nothing_is_built(
    name: str, fields: dict[str, Any], words: str
) -> None:
    base = FAMILIES[name]()
    modules, expected = [key for key, _ in base.named_modules()], logits(base)
    with pytest.raises(ValueError, match=words):
        made(name, base, filled=False, **{"target_modules": [], **fields})
    assert [key for key, _ in base.named_modules()] == modules
    assert own_hooks(base) == []
    assert torch.equal(logits(base), expected)


def test_one_block_has_no_cut() -> None:
    with pytest.raises(ValueError, match="'cut', which comes from the block before, and this model has one block"):
        made("llama", FAMILIES["llama"](1))


def test_synflow_from_the_embeddings_of_a_model_of_images_is_refused_and_from_its_loss_works() -> None:
    model = made("vit", task_type=None)
    images = {"pixel_values": torch.ones(2, 2, 8, 8), "labels": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=r"no token embeddings.*synflow_loss='loss'"):
        rankwise.score_paths(model, [images], proxy="synflow")
    for options in ({"proxy": "synflow", "synflow_loss": "loss"}, {"proxy": "grad_norm"}):
        scores = rankwise.score_paths(model, [images], **options)  # type: ignore[arg-type]
        assert set(scores) == set(names(model))
        assert all(math.isfinite(score) and score != 0 for score in scores.values())


def test_synflow_runs_experts_in_float64() -> None:
    """The default implementation has no kernel for it."""
    fast = FAMILIES["mixtral"]()
    fast.set_experts_implementation("grouped_mm")
    scores = rankwise.score_paths(made("mixtral", fast), proxy="synflow")
    assert fast.config._experts_implementation == "grouped_mm"
    assert scores == rankwise.score_paths(made("mixtral"), proxy="synflow")


# Config values.


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"shortcuts": "res1"}, r"shortcuts='res1' must be a list: shortcuts=\['res1'\]"),
        ({"shortcuts": ["res"]}, r"shortcuts='res' is not one of 'res1', 'res2', 'in', 'cut', 'layer', did you mean"),
        ({"shortcuts": ["lyer"]}, "did you mean 'layer'"),
        ({"shortcuts": ["linear"]}, "shortcuts='linear' is not one of"),
        ({"shortcut_r": 0}, "shortcut_r=0 must be a whole number of at least 1"),
        ({"shortcut_r": 2.5}, r"shortcut_r=2\.5 must be a whole number"),
        ({"shortcut_alpha": -1}, "shortcut_alpha=-1 must be positive, or None for lora_alpha / 4"),
        ({"shortcut_alpha": "4"}, "shortcut_alpha='4' must be positive"),
        ({"shortcut_dropout": 1.0}, r"shortcut_dropout=1\.0 must lie in \[0, 1\)"),
        ({"shortcut_norm": "outside"}, "shortcut_norm='outside' is not one of 'inside', 'reapply', did you mean"),
        ({"init_lora_weights": "orthogonal"}, "sets B from W0, and shortcuts have no W0: use True or 'gaussian'"),
        ({"rank_shape": "shortcuts", "rank_budget": 9, "shortcuts": []}, "there are none: name some"),
    ],
)
def test_a_value_that_makes_no_sense_is_explained(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rankwise.HeteroLoraConfig(**{"target_modules": ["q_proj"], "shortcuts": ["res1"], "mode": "dynamic", **fields})


def test_values_that_slip_through_are_explained_too() -> None:
    with pytest.raises(ValueError, match="shortcut_alpha=nan must be positive"):
        rankwise.HeteroLoraConfig(target_modules=["q_proj"], shortcuts=["res1"], shortcut_alpha=float("nan"))
    none: Any = None
    assert rankwise.HeteroLoraConfig(target_modules=["q_proj"], shortcuts=none).shortcuts == []


# Files of other shortcuts.


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["res1", "cut"], r"lacks 2 of this model's paths.*layers\.1\.path_cut"),
        (["cut"], r"tensors that this model has no place for, the first .*path_res1"),
        ([], r"tensors that this model has no place for, the first .*path_res1"),
    ],
)
def test_an_adapter_with_other_shortcuts_is_not_loaded_into_a_present_one(
    given: list[str], words: str, tmp_path: Path
) -> None:
    made("llama", shortcuts=["res1"]).save_pretrained(str(tmp_path))
    model = made("llama", shortcuts=given)
    with pytest.raises(ValueError, match=words):
        model.load_adapter(tmp_path, "default")


def test_a_config_and_weights_that_disagree_are_refused(tmp_path: Path) -> None:
    made("llama", shortcuts=["res1"]).save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    allocation = json.loads((tmp_path / ALLOCATION).read_text())
    del allocation["sha256"]  # what follows is changed on purpose
    (tmp_path / ALLOCATION).write_text(json.dumps(allocation))
    file.write_text(json.dumps({**config, "shortcuts": ["res1", "res2"]}))
    with pytest.raises(ValueError, match=r"lacks 3 of this model's paths.*path_res2"):
        PeftModel.from_pretrained(FAMILIES["llama"](), tmp_path)
    file.write_text(json.dumps({**config, "shortcut_r": 5}))
    with pytest.raises(ValueError, match=r"path_res1.* is \(2, 16\) but this model's is \(5, 16\)"):
        PeftModel.from_pretrained(FAMILIES["llama"](), tmp_path)
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"tensors that this model has no place for.*layers\.2\.path_res1"):
        PeftModel.from_pretrained(FAMILIES["llama"](2), tmp_path)


def test_an_edit_of_a_path_that_is_not_there_names_the_nearest() -> None:
    model = made("llama", shortcuts=["res1", "cut"])
    with pytest.raises(ValueError, match=r"'layers\.0\.cut'.* names no path.*did you mean 'layers\.\d\.cut'"):
        rankwise.apply_(model, [rankwise.Enable("layers.0.cut")])
