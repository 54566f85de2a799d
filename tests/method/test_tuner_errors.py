"""What the tuner refuses, in words that say what to change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load, load_file, save_file
from tests.models import adapted, fill_, keep_only_, logits, text_batches, tiny_bert, tiny_llama
from tests.traces import assert_same, snapshot
from torch import nn

import rankwise

TARGETS: dict[str, tuple[Any, str, list[str]]] = {
    "bert": (tiny_bert, "SEQ_CLS", ["query", "value"]),
    "llama": (tiny_llama, "CAUSAL_LM", ["q_proj", "v_proj", "down_proj"]),
}


def made(family: str, **fields: Any) -> PeftModel:
    build, task, targets = TARGETS[family]
    return adapted(build(), task_type=task, target_modules=targets, **fields)


def half_on(model: nn.Module) -> None:
    keep_only_(model, *list(rankwise.named_paths(model))[::2])


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    model = made("llama")
    model.save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=r"tensors that this model has no place for.*another model"):
        PeftModel.from_pretrained(tiny_llama(blocks=1), tmp_path)
    with pytest.raises(ValueError, match=r"lacks 3 of this model's paths.*another model"):
        PeftModel.from_pretrained(tiny_llama(blocks=3), tmp_path)
    with pytest.raises(ValueError, match=r"v_proj.* is \(8, 2\) but this model's is \(16, 2\)"):
        PeftModel.from_pretrained(tiny_llama(gqa=False), tmp_path)
    with pytest.raises(ValueError, match=r"did you mean|matches no module"):
        PeftModel.from_pretrained(tiny_bert(), tmp_path)


def test_files_that_are_no_adapter_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)
    model = made("llama")
    model.save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is not as it was saved"):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)
    (tmp_path / "allocation.json").unlink()  # as version 0.1 wrote it, without digests
    with pytest.raises(ValueError, match="no whole safetensors file"):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)
    tensors = {key: value for key, value in load(whole).items() if "layers.0" not in key}
    save_file(tensors, file)
    with pytest.raises(ValueError, match="of this model's paths"):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)


def test_enabled_only_is_for_models_with_paths(tmp_path: Path) -> None:
    plain = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="has no rankwise paths"):
        plain.save_pretrained(str(tmp_path), enabled_only=True)
    with pytest.raises(ValueError, match="has no rankwise paths; make some with"):
        rankwise.named_paths(plain)


def test_adapters_whose_names_are_parts_of_others_load_beside_them(tmp_path: Path) -> None:
    model = made("bert")
    fill_(model)
    half_on(model)
    model.save_pretrained(str(tmp_path))
    for name in ("def", "layer"):
        model.load_adapter(str(tmp_path), name)
        assert [p.enabled for p in rankwise.named_paths(model, name).values()] == [p.enabled for p in paths_of(model)]


def paths_of(model: nn.Module) -> list[rankwise.LowRankPath]:
    return list(rankwise.named_paths(model, "default").values())


def test_a_merged_adapter_cannot_be_edited() -> None:
    model = made("bert")
    fill_(model)
    expected = logits(model)
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"merged into the base; call unmerge_adapter\(\) first"):
        keep_only_(model)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), expected)


def test_enabled_only_filters_a_given_state_dict_too(tmp_path: Path) -> None:
    model = made("bert")
    half_on(model)
    model.save_pretrained(str(tmp_path), state_dict=model.state_dict(), enabled_only=True)
    kept = [key for key in load_file(tmp_path / "adapter_model.safetensors") if ".lora_A." in key]
    assert len(kept) == sum(path.enabled for path in paths_of(model))


def test_a_budget_that_no_path_fits_into_says_so() -> None:
    with pytest.warns(UserWarning, match=r"budget=10 is 10 parameters, but the cheapest path costs 64"):
        made("bert", mode="dynamic", budget=10)


def test_a_head_of_another_size_is_refused(tmp_path: Path) -> None:
    made("bert").save_pretrained(str(tmp_path))
    with pytest.raises(
        ValueError, match=r"classifier.* is \(2,\) but this model's is \(3,\).* another number of labels"
    ):
        PeftModel.from_pretrained(tiny_bert(num_labels=3), tmp_path)


@pytest.mark.parametrize(
    ("wrap", "inside"),
    [(lambda base: torch.compile(base, backend="eager"), "_orig_mod"), (nn.DataParallel, "module")],
    ids=["compiled", "parallel"],
)
def test_a_wrapped_base_is_refused_and_left_as_it_was(wrap: Callable[[nn.Module], Any], inside: str) -> None:
    base = tiny_llama()
    wrapped, before = wrap(base), snapshot(base)
    words = rf"which renames its modules: give the model inside \(model\.{inside}\)"
    with pytest.raises(ValueError, match=words):
        get_peft_model(wrapped, rankwise.HeteroLoraConfig(target_modules=["q_proj"], mode="off"))
    with pytest.raises(ValueError, match=words):
        rankwise.rank_plan(wrapped, text_batches(2, 8), budget=500)
    with pytest.raises(ValueError, match=words):
        rankwise.plan_lora(wrapped, text_batches(2, 8), granularity="path", target_modules=["q_proj"])
    assert_same(snapshot(base), before)
    assert get_peft_model(wrapped, LoraConfig(target_modules=["q_proj"])) is not None  # PEFT's own is PEFT's to refuse


def test_adapters_are_not_summed_by_weights() -> None:
    model = made("bert")
    with pytest.raises(ValueError, match="would bring back paths that are off"):
        model.add_weighted_adapter(["default"], [1.0], "sum")
