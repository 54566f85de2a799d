"""Shortcuts have no weight to be merged into: what can be merged is, what can't is refused before anything changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.families import FAMILIES
from tests.models import logits, tokens
from tests.shortcuts import FIVE, base_logits, half_on_, kinds, linear_only_, made, names, on, own_hooks, second
from torch import Tensor, nn

import rankwise
from rankwise.paths.path_set import path_sets


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", FIVE)
def test_unload_gives_the_base_model_back_without_a_trace(name: str) -> None:
    model, base = made(name), FAMILIES[name]()
    second(model)
    bare = model.unload()
    assert torch.equal(logits(bare), logits(base))
    assert [key for key, _ in bare.named_modules()] == [key for key, _ in base.named_modules()]
    assert [key for key, _ in bare.state_dict().items()] == [key for key, _ in base.state_dict().items()]
    assert own_hooks(bare) == []
    assert "rankwise_paths" not in bare.__dict__
    again = made(name, base=bare)
    assert not torch.allclose(logits(again), logits(base), atol=1e-3)


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("how", ["merge_and_unload", "merge_adapter", "export_lora"])
def test_live_shortcuts_are_not_merged_and_nothing_is_touched(name: str, how: str, tmp_path: Path) -> None:
    model = made(name)
    half_on_(model)
    live = [path for path in on(model) if path.rpartition(".")[2] in kinds(name)]
    before, expected = weights_of(model), logits(model)
    with pytest.raises(ValueError, match=rf"has {len(live)} live block paths.*{live[0]}.*{live[-1]}.*switch them off"):
        rankwise.export_lora(model, tmp_path / "out") if how == "export_lora" else getattr(model, how)()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(logits(model), expected)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", FIVE)
def test_with_no_live_shortcut_the_rest_is_merged(name: str, tmp_path: Path) -> None:
    model = made(name)
    linear_only_(model)
    expected = logits(model)
    rankwise.export_lora(model, tmp_path)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(FAMILIES[name](), tmp_path)), expected)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected)
    model.unmerge_adapter()
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected)
    assert [key for key, _ in merged.named_modules()] == [key for key, _ in FAMILIES[name]().named_modules()]
    assert own_hooks(merged) == []


def test_a_frozen_shortcut_counts_as_live_unless_its_b_is_zero() -> None:
    model = made("llama", on_disable="freeze", filled=False)
    linear_only_(model)
    path = rankwise.named_paths(model)["layers.1.res1"]
    with torch.no_grad():
        path.lora_B.fill_(0.1)
    with pytest.raises(ValueError, match=r"has 1 live block paths.*layers\.1\.res1"):
        model.merge_and_unload()
    with torch.no_grad():
        path.lora_B.zero_()
    own_hooks(model.merge_and_unload())


@pytest.mark.parametrize("kind", ["in", "cut"])
@pytest.mark.parametrize("how", ["merge_and_unload", "merge_adapter", "export_lora"])
def test_norms_that_run_twice_are_never_merged(kind: str, how: str, tmp_path: Path) -> None:
    model = made("bert", shortcuts=["res1", kind], shortcut_norm="reapply")
    linear_only_(model)
    expected = logits(model)
    with pytest.raises(ValueError, match=rf"shortcut_norm='reapply' and {kind} paths.*norms run twice"):
        rankwise.export_lora(model, tmp_path / "out") if how == "export_lora" else getattr(model, how)()
    assert torch.equal(logits(model), expected)


def test_without_a_crossing_kind_reapply_has_nothing_to_run_twice() -> None:
    model = made("bert", shortcuts=["res1", "layer"], shortcut_norm="reapply")
    linear_only_(model)
    expected = logits(model)
    torch.testing.assert_close(logits(model.merge_and_unload()), expected)


def test_a_merge_that_fails_leaves_the_shortcuts_in_place() -> None:
    model = made("llama")
    expected = logits(model)
    linear_only_(model)
    broken = rankwise.named_paths(model)["layers.2.v_proj"].lora_B
    value = broken[0, 0].item()
    with torch.no_grad():
        broken[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_and_unload(safe_merge=True)
    with torch.no_grad():
        broken[0, 0] = value
    rankwise.apply_(model, [rankwise.Enable(name) for name in names(model, "res1")])  # PEFT merged what came before
    found = logits(model)
    assert not torch.equal(found, base_logits("llama"))
    assert not torch.equal(found, expected)


def test_a_copy_of_a_block_is_no_part_of_the_model() -> None:
    model = made("llama")
    expected = logits(model)
    wiring: Any = path_sets(model).wiring  # type: ignore[attr-defined]
    block = copy.deepcopy(next(iter(wiring.blocks.values())))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
    assert torch.equal(logits(model), expected)


# Batches that mix adapters.


def test_a_mixed_batch_is_refused_while_shortcuts_are_live() -> None:
    model = made("llama")
    model.add_adapter("second", rankwise.HeteroLoraConfig(r=2, mode="off", target_modules=["q_proj"]))
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=r"adapter_names can't be given.*layers\.0\.res1.*set_adapter"):
            call(input_ids=tokens(), adapter_names=["default", "second"])


def test_a_mixed_batch_runs_where_no_shortcut_is_live() -> None:
    model = made("llama")
    linear_only_(model)
    expected = logits(model)
    with torch.no_grad():
        mixed = model(input_ids=tokens(), adapter_names=["default", "__base__"]).logits
    torch.testing.assert_close(mixed[0], expected[0])
    torch.testing.assert_close(mixed[1], base_logits("llama")[1])


def test_a_mixed_batch_is_refused_where_norms_run_twice() -> None:
    model = made("bert", shortcut_norm="reapply")
    linear_only_(model)
    with pytest.raises(ValueError, match="adapter_names"):
        model(input_ids=tokens(), adapter_names=["default", "__base__"])
