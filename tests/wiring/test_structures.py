from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import get_peft_model
from tests.families import FAMILIES
from tests.models import fill_, logits, tiny_bert
from tests.references import reference
from torch import Tensor

import rankwise
from rankwise import Disable, Enable, Inject, Merge

LENGTH = 6
LENGTHS = {"edit_unit": "steps", "total_steps": 64}
Found = tuple[Tensor, dict[str, Tensor]]

# Structures of four blocks: plain, merged once and twice, injected, and everything together.
STRUCTURES: dict[str, list[Any]] = {
    "plain": [],
    "merged": [Merge("layers.1.layer", "layers.2.layer")],
    "survived by the second": [Merge("layers.1.layer", "layers.2.layer", "layers.2.layer")],
    "merged twice": [Merge("layers.2.layer", "layers.3.layer"), Merge("layers.1.layer", "layers.2-3.layer")],
    "injected": [Inject("layers.0.layer"), Inject("layers.2.layer")],
    "merged and injected": [Merge("layers.0.layer", "layers.1.layer", "layers.1.layer"), Inject("layers.3.layer")],
}


def ids(seed: int = 0) -> Tensor:
    return torch.randint(4, 40, (2, LENGTH), generator=torch.Generator().manual_seed(seed))


def lor2c(name: str, blocks: int = 4, *, edits: Sequence[Any] = (), **fields: Any) -> Any:
    """A tiny float64 model of a family with LoR2C, every ``B`` filled, LoRA waiting in all blocks, after the edits."""
    config = rankwise.Lor2cConfig(
        **{"r": 4, "lora_alpha": 3, "injections": blocks, "inject_alpha": 5.0, **LENGTHS, **fields}
    )
    model: Any = get_peft_model(FAMILIES[name](blocks).double(), config).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for paths in model.get_base_model().rankwise_paths.values():
            for path in paths.resident:
                path.lora_B.copy_(torch.randn(path.lora_B.shape, generator=generator, dtype=torch.float64))
    rankwise.apply_(model, edits)
    return model


def loss_of(found: Tensor) -> Tensor:
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(9), dtype=found.dtype)
    return (found * weights).sum()


def trained(model: Any) -> Found:
    found = model(input_ids=ids()).logits
    loss_of(found).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and ".lora_" in n}
    model.zero_grad()
    return found.detach(), gradients


def expected(name: str, model: Any, blocks: int = 4) -> Found:
    """The reference's logits, and its gradients by the name of the model's parameter."""
    leaves: dict[int, Tensor] = {}
    weights = {}
    for path_name, path in rankwise.named_paths(model).items():
        if path.enabled:
            a, b = (leaves.setdefault(id(p), p.detach().clone().requires_grad_()) for p in path.parameters)
            weights[path_name] = (a, b, path.scaling)
    found = reference(FAMILIES[name](blocks).double(), ids(), weights)
    names = {id(parameter): n for n, parameter in model.named_parameters()}
    gradients = torch.autograd.grad(loss_of(found), list(leaves.values()))
    return found.detach(), {names[key]: grad for key, grad in zip(leaves, gradients, strict=True)}


def assert_same(actual: Found, wanted: Found) -> None:
    scale = max(1.0, wanted[0].abs().max().item())
    torch.testing.assert_close(actual[0], wanted[0], rtol=0, atol=1e-10 * scale)
    assert actual[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        scale = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(actual[1][name], gradient, rtol=0, atol=1e-10 * scale, msg=lambda m: f"{name}: {m}")  # noqa: B023


@pytest.mark.parametrize("share", [False, True], ids=["plain", "shared"])
@pytest.mark.parametrize("structure", list(STRUCTURES))
@pytest.mark.parametrize("name", ["bert", "opt-post", "opt-pre", "llama", "gemma2"])
def test_a_structure_equals_its_reference(name: str, structure: str, share: bool) -> None:
    model = lor2c(name, edits=STRUCTURES[structure], share=share)
    assert_same(trained(model), expected(name, model))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["bert", "opt-pre", "llama"])
def test_spans_are_the_same_with_gradient_checkpointing(name: str, reentrant: bool) -> None:
    edits = STRUCTURES["merged and injected"]
    wanted = trained(lor2c(name, edits=edits))
    model = lor2c(name, edits=edits)
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": reentrant})
    model.train()
    assert_same(trained(model), wanted)


def test_two_blocks_in_closed_form() -> None:
    """With every weight of the blocks zero a pre-norm model is the identity, so ``out = (1 + D2) (1 + D1) h``."""
    base = FAMILIES["llama"](2).double()
    with torch.no_grad():
        for parameter in base.model.layers.parameters():
            parameter.zero_()
    model = get_peft_model(base, rankwise.Lor2cConfig(r=2, injections=0)).double().eval()
    fill_(model)
    delta = [p.scaling * (p.lora_B @ p.lora_A).detach() for p in rankwise.named_paths(model).values()]
    h = base.model.embed_tokens(ids()).detach()
    eye = torch.eye(h.shape[-1], dtype=torch.float64)
    stream = base.model(input_ids=ids()).last_hidden_state
    torch.testing.assert_close(stream, base.model.norm(h @ ((eye + delta[1]) @ (eye + delta[0])).T), rtol=0, atol=1e-12)
    rankwise.apply_(model, [Merge("layers.0.layer", "layers.1.layer", "layers.1.layer")])
    stream = base.model(input_ids=ids()).last_hidden_state
    torch.testing.assert_close(stream, base.model.norm(h @ (eye + delta[1]).T), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", list(FAMILIES))
@pytest.mark.parametrize("share", [False, True], ids=["plain", "shared"])
def test_a_fresh_model_is_the_base_model_and_so_is_a_disabled_one(name: str, share: bool) -> None:
    base = FAMILIES[name](2)
    wanted = logits(base, ids())
    model: Any = get_peft_model(base, rankwise.Lor2cConfig(r=4, share=share, merges=1, injections=1)).eval()
    assert torch.equal(logits(model, ids()), wanted)
    fill_(model)
    assert not torch.equal(logits(model, ids()), wanted)
    with model.disable_adapter():
        assert torch.equal(logits(model, ids()), wanted)
    assert torch.equal(logits(model.unload(), ids()), wanted)


@pytest.mark.parametrize("share", [False, True], ids=["plain", "shared"])
@pytest.mark.parametrize("structure", list(STRUCTURES))
def test_the_structure_is_saved_and_comes_back(structure: str, share: bool, tmp_path: Any) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file

    model = lor2c("bert", edits=STRUCTURES[structure], share=share)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(".layer_paths." in key and ".lora_A." in key for key in saved) == (1 if share else 4)
    again = PeftModel.from_pretrained(FAMILIES["bert"](4).double(), tmp_path).eval()
    assert list(rankwise.named_paths(again)) == list(rankwise.named_paths(model))
    torch.testing.assert_close(logits(again, ids()).double(), logits(model, ids()), rtol=0, atol=1e-5)
    transformed = FAMILIES["bert"](4).double()
    transformed.load_adapter(str(tmp_path))
    torch.testing.assert_close(logits(transformed, ids()).double(), logits(model, ids()), rtol=0, atol=1e-5)


def test_a_merge_by_hand_in_a_search_keeps_budget_and_follows_in_names() -> None:
    config = rankwise.HeteroLoraConfig(
        r=2, target_modules=["query", "value"], shortcuts=["layer"], budget=0.5, mode="dynamic", proxy="constant"
    )
    model = get_peft_model(tiny_bert(4), config)
    allocator = rankwise.Allocator(model)
    limit = allocator.limit
    edits: list[Any] = [
        Enable("layers.1.layer"),
        Merge("layers.1.layer", "layers.2.layer"),
        Disable("layers.1-2.layer"),
    ]
    rankwise.apply_(model, edits)
    record = allocator.search()
    assert allocator.limit == limit
    assert "layers.1-2.layer" in record["scores"]
    assert not {"layers.1.layer", "layers.2.layer"} & set(record["scores"])
    assert record["counts"]["enabled"] <= limit
    allocator.close()
