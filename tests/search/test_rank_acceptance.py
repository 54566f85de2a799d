"""The acceptance list for an adapter whose ranks were chosen (``granularity="rank"``), with shortcuts and without."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.models import (
    Batch,
    adapted,
    class_batches,
    fill_,
    in_a_clean_process,
    logits,
    text_batches,
    tiny_bert,
    tiny_llama,
    tokens,
)
from tests.traces import Broken, assert_same, losses_of_a_user, snapshot
from torch import nn

import rankwise
from rankwise.paths.path_set import path_set

BASES: dict[str, Callable[[], Any]] = {"bert": lambda: tiny_bert(3), "llama": lambda: tiny_llama(3)}
TARGETS = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"]}
SHORTCUTS = {"linear": [], "shortcuts": ["res2", "layer"]}
ALL = [(name, space) for name in BASES for space in SHORTCUTS]
EACH = pytest.mark.parametrize(("name", "space"), ALL, ids=["-".join(one) for one in ALL])


def batches(name: str) -> list[Batch]:
    return class_batches(6, 8) if name == "bert" else text_batches(6, 4)


def fields_of(name: str, space: str) -> dict[str, Any]:
    return {
        "task_type": "SEQ_CLS" if name == "bert" else "CAUSAL_LM",
        "target_modules": TARGETS[name],
        "shortcuts": SHORTCUTS[space],
        "mode": "static",
        "granularity": "rank",
        "r": 4,
        "lora_alpha": 8,
        "budget": 300,
        "score_batches": 6,
    }


def undecided(name: str, space: str) -> PeftModel:
    return adapted(BASES[name](), **fields_of(name, space))


def chosen(name: str, space: str) -> PeftModel:
    """A model whose ranks were chosen, every path of which contributes something of its own."""
    model = undecided(name, space)
    rankwise.Allocator(model, batches=batches(name))
    fill_(model)
    assert len(set(ranks(model).values())) > 1, "ranks that differ"
    assert {kind.rpartition(".")[2] in SHORTCUTS["shortcuts"] for kind in ranks(model)} >= {space == "shortcuts"}
    assert not torch.allclose(logits(model), logits(BASES[name]()), atol=1e-2)
    return model


def ranks(model: nn.Module, adapter: str | None = None) -> dict[str, int]:
    return {name: path.r for name, path in rankwise.named_paths(model, adapter).items()}


@EACH
def test_every_way_to_load_gives_the_same_logits_and_ranks(name: str, space: str, tmp_path: Path) -> None:
    model = chosen(name, space)
    model.save_pretrained(str(tmp_path))
    transformed = BASES[name]()
    transformed.load_adapter(str(tmp_path))
    beside = PeftModel.from_pretrained(BASES[name](), str(tmp_path), adapter_name="first")
    beside.load_adapter(str(tmp_path), "second")
    beside.set_adapter("second")
    plain = PeftModel.from_pretrained(BASES[name](), str(tmp_path))
    for loaded in (plain, transformed, beside):
        assert torch.equal(logits(loaded), logits(model))
        assert ranks(loaded) == ranks(model)
    kept = load_file(tmp_path / "adapter_model.safetensors")
    spent = sum(value.numel() for key, value in kept.items() if ".lora_A." in key or ".lora_B." in key)
    assert spent == sum(path.num_parameters for path in rankwise.named_paths(model).values()) <= 300


CLEAN = """
import sys
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

root, kind = sys.argv[1:]
base = {"bert": AutoModelForSequenceClassification, "llama": AutoModelForCausalLM}[kind].from_pretrained(root + "/base")
model = PeftModel.from_pretrained(base, root + "/adapter").eval()
save_file({"logits": model(**load_file(root + "/ids.safetensors")).logits.detach()}, root + "/logits.safetensors")
"""


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [False, True], ids=["padded", "pattern"])
@pytest.mark.parametrize("name", BASES)
def test_the_export_gives_the_same_logits_without_rankwise(name: str, pattern: bool, tmp_path: Path) -> None:
    model = chosen(name, "linear")
    rankwise.export_lora(model, tmp_path / "adapter", rank_pattern=pattern)
    BASES[name]().save_pretrained(tmp_path / "base")
    save_file({"input_ids": tokens()}, tmp_path / "ids.safetensors")
    in_a_clean_process(CLEAN, tmp_path, name)
    torch.testing.assert_close(load_file(tmp_path / "logits.safetensors")["logits"], logits(model), rtol=0, atol=1e-5)


@EACH
def test_disabled_it_is_the_base(name: str, space: str) -> None:
    model = chosen(name, space)
    wanted = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(BASES[name]()))
    assert torch.equal(logits(model), wanted)


@EACH
def test_a_second_adapter_is_chosen_for_itself(name: str, space: str) -> None:
    model = chosen(name, space)
    wanted, before = logits(model), ranks(model)
    other = {**fields_of(name, space), "budget": 150, "task_type": None}
    model.add_adapter("other", rankwise.HeteroLoraConfig(**other))
    with pytest.raises(ValueError, match=r"adapter 'other' is not the active one: call model\.set_adapter\('other'\)"):
        rankwise.Allocator(model, batches=batches(name), adapter="other")
    model.set_adapter("other")
    rankwise.Allocator(model, batches=batches(name), adapter="other")
    of_other = sum(path.num_parameters for path in rankwise.named_paths(model, "other").values())
    assert 0 < of_other <= 150
    assert len(rankwise.history(model, "other")) == len(rankwise.history(model, "default")) == 1
    model.set_adapter("default")
    assert torch.equal(logits(model), wanted)
    assert ranks(model) == before
    model.delete_adapter("other")
    assert torch.equal(logits(model), wanted)


@EACH
def test_a_copy_is_the_same_and_apart(name: str, space: str) -> None:
    model = chosen(name, space)
    wanted = logits(model)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), wanted)
    assert ranks(twin) == ranks(model)
    assert rankwise.history(twin) == rankwise.history(model)
    optimizer = torch.optim.AdamW([p for p in twin.parameters() if p.requires_grad], lr=0.05)
    twin.train()(**batches(name)[0]).loss.backward()
    optimizer.step()
    assert not torch.equal(logits(twin), wanted)
    assert torch.equal(logits(model), wanted)


@EACH
def test_merged_it_has_the_same_logits_or_says_what_can_not_be_merged(name: str, space: str) -> None:
    model = chosen(name, space)
    wanted = logits(model)
    if space == "shortcuts":
        with pytest.raises(ValueError, match="live block paths, which run beside the network"):
            model.merge_and_unload()
        assert torch.equal(logits(model), wanted)
        return
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), wanted, rtol=0, atol=1e-5)
    assert not [key for key in merged.state_dict() if "lora" in key]


@pytest.mark.parametrize("space", SHORTCUTS)
def test_text_is_generated_with_kept_keys_and_values_as_without(space: str) -> None:
    model: Any = chosen("llama", space)
    start = tokens(2, 4)
    asked = {"input_ids": start, "attention_mask": torch.ones_like(start), "max_new_tokens": 6, "do_sample": False}
    made = [model.generate(**asked, pad_token_id=0, use_cache=kept) for kept in (True, False)]
    assert torch.equal(*made)
    step = start
    for _ in range(6):  # by hand: the likeliest token, again and again
        step = torch.cat([step, logits(model, step)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(made[0][:, : step.shape[1]], step[:, : made[0].shape[1]])


@pytest.mark.parametrize("space", SHORTCUTS)
@pytest.mark.parametrize("fails_at", [0, 3, 9], ids=["head", "gradients", "curvature"])
def test_a_choice_that_fails_in_the_users_loss_leaves_no_trace(space: str, fails_at: int) -> None:
    model = undecided("bert", space).train()
    model.get_submodule("base_model.model.bert.encoder.layer.0").eval()
    model.register_buffer("running", torch.zeros(2))
    given, options = batches("bert"), losses_of_a_user(fails_at)
    before = snapshot(model)
    with pytest.raises(Broken):
        rankwise.Allocator(model, batches=given, plan={"head_warmup": 2}, **options)
    assert_same(before, snapshot(model))
    assert path_set(model).config.undecided
    assert rankwise.history(model) == []
    rankwise.Allocator(model, batches=given, plan={"head_warmup": 2}, **losses_of_a_user())
    assert len(rankwise.history(model)) == 1


@EACH
def test_saved_while_undecided_it_is_chosen_after_loading(name: str, space: str, tmp_path: Path) -> None:
    model = undecided(name, space)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(BASES[name](), str(tmp_path), is_trainable=True)
    assert path_set(loaded).config.undecided
    assert torch.equal(logits(loaded), logits(BASES[name]()))
    for each in (model, loaded):
        rankwise.Allocator(each, batches=batches(name))
    assert ranks(loaded) == ranks(model)
    for path in rankwise.named_paths(loaded).values():
        assert torch.equal(path.lora_A, rankwise.named_paths(model)[path.name].lora_A)
