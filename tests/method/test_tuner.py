"""The tuner: what PEFT promises holds with paths switched on and off."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.models import (
    TRIO,
    adapted,
    class_batches,
    fill_,
    half_on_,
    keep_only_,
    logits,
    one_of_trio,
    text_batches,
    tiny_llama,
    tokens,
)
from torch import nn

import rankwise
from rankwise.paths.path_set import path_set


def status(model: nn.Module) -> dict[str, tuple[bool, bool]]:
    return {name: (path.enabled, path.contributing) for name, path in rankwise.named_paths(model).items()}


@pytest.mark.parametrize("family", TRIO)
def test_the_model_starts_as_the_base_model(family: str) -> None:
    build = TRIO[family][0]
    assert torch.equal(logits(one_of_trio(family)), logits(build()))


@pytest.mark.parametrize("family", TRIO)
@pytest.mark.parametrize("enabled_only", [False, True])
def test_saved_and_loaded_it_is_the_same(family: str, enabled_only: bool, tmp_path: Path) -> None:
    model = one_of_trio(family)
    fill_(model)
    half_on_(model)
    expected = logits(model)
    model.save_pretrained(str(tmp_path), enabled_only=enabled_only)
    build = TRIO[family][0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = PeftModel.from_pretrained(build(), tmp_path)
    assert torch.equal(logits(loaded), expected)
    assert status(loaded) == status(model)
    plain = build()
    plain.load_adapter(str(tmp_path))
    assert torch.equal(logits(plain), expected) or enabled_only  # transformers warns of what is left out, and copes
    assert status(plain) == status(model)
    lean = load_file(tmp_path / "adapter_model.safetensors")
    weights = [key for key in lean if ".lora_A." in key]
    assert len(weights) == len([p for p in rankwise.named_paths(model).values() if p.enabled or not enabled_only])


def test_low_memory_loading_restores_the_allocation(tmp_path: Path) -> None:
    model = one_of_trio("llama")
    fill_(model)
    half_on_(model)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path, low_cpu_mem_usage=True)
    assert status(loaded) == status(model)
    assert torch.equal(logits(loaded), logits(model))


def test_the_allocation_survives_what_peft_users_do(tmp_path: Path) -> None:
    model = one_of_trio("llama")
    fill_(model)
    half_on_(model)
    expected, on = logits(model), status(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(tiny_llama()))
    assert torch.equal(logits(model), expected)
    config = rankwise.HeteroLoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["k_proj", "v_proj"], mode="off")
    model.add_adapter("other", config)
    model.set_adapter("other")
    assert all(path.enabled for path in rankwise.named_paths(model).values())
    assert torch.equal(logits(model), logits(tiny_llama()))
    model.set_adapter("default")
    assert torch.equal(logits(model), expected)
    assert status(model) == on
    for path in rankwise.named_paths(model).values():
        path.host.set_scale("default", 2.0)
        path.host.unscale_layer()
    assert torch.equal(logits(model), expected)
    twin = copy.deepcopy(model)
    keep_only_(twin)
    assert status(model) == on, "a copy has switches of its own"
    assert torch.equal(logits(model), expected)
    model.delete_adapter("other")
    assert torch.equal(logits(model), expected)
    model.save_pretrained(str(tmp_path))
    keep_only_(model)
    model.load_adapter(tmp_path, "default")
    assert status(model) == on
    assert torch.equal(logits(model), expected)


def test_an_adapter_from_the_same_config_object_takes_over_the_structure() -> None:
    """DPO makes its reference adapter this way and copies parameters only."""
    model = one_of_trio("bert", mode="dynamic", budget=0.5)
    half_on_(model)
    model.add_adapter("reference", model.peft_config["default"])
    assert status(model) == {
        name: (path.enabled, path.contributing) for name, path in rankwise.named_paths(model, "reference").items()
    }


def test_only_enabled_paths_and_the_head_move() -> None:
    model = one_of_trio("bert", mode="dynamic", budget=0.5, search_every=2, score_batches=2).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for batch in class_batches(8):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        on = [name for name, path in rankwise.named_paths(model).items() if path.enabled]
        assert path_set(model).counts()["enabled"] <= rankwise.plan(model).budget
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        paths = rankwise.named_paths(model)
        ids = {id(p) for name in on for p in paths[name].parameters}
        head = {name for name, p in model.named_parameters() if "modules_to_save" in name}
        expected = {name for name, p in model.named_parameters() if id(p) in ids} | head
        zero_at_first = {name for name in expected if "lora_A" in name}  # no gradient while B is 0, decay only
        assert moved - expected == set()
        assert expected - moved <= zero_at_first
    assert len({tuple(record["chosen"]) for record in rankwise.history(model)}) >= 1


def test_generation_token_by_token_equals_all_at_once() -> None:
    model = one_of_trio("llama")
    fill_(model)
    half_on_(model)
    ids = tokens(1)
    whole = logits(model, ids)
    cached = model(input_ids=ids[:, :3], use_cache=True)
    steps = [cached.logits]
    for position in range(3, ids.shape[1]):
        cached = model(input_ids=ids[:, position : position + 1], past_key_values=cached.past_key_values)
        steps.append(cached.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)
    assert model.generate(input_ids=ids, max_new_tokens=3, do_sample=False).shape == (1, ids.shape[1] + 3)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients_and_scores(reentrant: bool) -> None:
    found: list[tuple[list[torch.Tensor | None], dict[str, float]]] = []
    for checkpointing in (False, True):
        model = one_of_trio("llama", mode="dynamic", budget=0.5, search_every=1, score_batches=1).double().train()
        fill_(model)
        half_on_(model)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
        model(**text_batches(1)[0]).loss.backward()
        gradients = [path.lora_B.grad for path in rankwise.named_paths(model).values()]
        optimizer.step()
        found.append((gradients, rankwise.history(model)[0]["scores"]))
    for plain, recomputed in zip(found[0][0], found[1][0], strict=True):
        assert (plain is None) == (recomputed is None)
        if plain is not None:
            torch.testing.assert_close(recomputed, plain, rtol=1e-12, atol=0)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-12)


def test_bfloat16_and_autocast() -> None:
    exact = one_of_trio("llama")
    fill_(exact)
    half_on_(exact)
    expected = logits(exact)
    half = adapted(tiny_llama().bfloat16(), task_type="CAUSAL_LM", target_modules=TRIO["llama"][2])
    fill_(half)
    half_on_(half)
    assert logits(half).dtype == torch.bfloat16
    torch.testing.assert_close(logits(half).float(), expected, rtol=0.1, atol=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(logits(exact).float(), expected, rtol=0.1, atol=0.5)


@pytest.mark.slow
@torch._dynamo.config.patch(recompile_limit=8)  # torch's own, which the search raises
def test_a_compiled_model_follows_twelve_reallocations() -> None:
    model = one_of_trio("bert", mode="dynamic", budget=0.5, proxy="constant", search_every=1, scoring="online")
    fill_(model)
    compiled: Any = torch.compile(model, backend="aot_eager")
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for batch in class_batches(12):
        loss = compiled(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.eval()
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits)
        model.train()
    assert len(rankwise.history(model)) >= 12
    assert torch._dynamo.config.recompile_limit > 2 * 12
    torch._dynamo.reset()
