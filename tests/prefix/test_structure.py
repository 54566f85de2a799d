"""Where a frozen prefix ends: below everything that trains, or may be switched on; and what runs before it."""

from __future__ import annotations

from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from tests.families import FAMILIES
from tests.models import adapted, keep_only_, tiny_bert, tiny_llama, tokens
from torch import nn

import rankwise
from rankwise.prefix.structure import prefix_of


def frozen(name: str, blocks: int = 4) -> Any:
    return FAMILIES[name](blocks).requires_grad_(False)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_lies_before_the_blocks_is_what_runs_before_them(name: str) -> None:
    """By watching a forward pass: which weights are used before the first block is."""
    model = frozen(name, 2)
    prefix = prefix_of(model)
    owners = {module for module in model.modules() if any(p is not None for p in module._parameters.values())}
    ran: list[nn.Module] = []
    for module in owners | {*prefix.blocks, prefix.following}:
        module.register_forward_pre_hook(lambda module, _: ran.append(module))
    model(input_ids=tokens())
    earlier = ran[: ran.index(prefix.blocks[0])]
    within = {id(module) for part in prefix.before for module in part.modules()}
    assert earlier
    assert {type(module).__name__ for module in earlier if id(module) not in within} == set()
    assert ran.index(prefix.blocks[0]) < ran.index(prefix.following)
    assert not any(block is part for block in prefix.blocks for part in prefix.before)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_its_parameters_are_those_of_its_modules(name: str) -> None:
    model = frozen(name)
    prefix = prefix_of(model)
    found = {id(p) for p in prefix.parameters()}
    named = {n for n, p in model.named_parameters() if id(p) in found}
    assert any("embed" in n or "wte" in n for n in named)
    own = {id(p) for p in prefix.following.parameters()}
    assert not found & own
    assert {id(p) for block in prefix.blocks for p in block.parameters()} <= found


def test_of_a_model_in_which_nothing_trains_the_last_block_is_left() -> None:
    model = frozen("llama")
    blocks = list(model.model.layers)
    prefix = prefix_of(model)
    assert list(prefix.blocks) == blocks[:3]
    assert prefix.following is blocks[3]
    assert prefix.model is model


@pytest.mark.parametrize(
    ("fields", "lowest"),
    [
        ({"target_modules": ["q_proj"], "layers_to_transform": [2, 3]}, 2),
        ({"target_modules": [], "shortcuts": ["res1", "res2"], "layers_to_transform": [2]}, 2),
        ({"target_modules": [], "shortcuts": ["cut"], "layers_to_transform": [3]}, 2),  # it reads the block before
        ({"target_modules": ["q_proj"], "layers_to_transform": [1, 3]}, 1),
        ({"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [3]}, 3),
    ],
)
@pytest.mark.parametrize("off", [False, True])
def test_it_ends_below_the_lowest_path_on_or_off(fields: dict[str, Any], lowest: int, off: bool) -> None:
    model = adapted(tiny_llama(4), **fields)
    if off:
        keep_only_(model)
    base: Any = model.get_base_model()
    blocks = list(base.model.layers)
    for given in (model, base):
        prefix = prefix_of(given)
        assert list(prefix.blocks) == blocks[:lowest]
        assert prefix.following is blocks[lowest]


@pytest.mark.parametrize("survivor", ["layers.2.layer", "layers.3.layer"])
def test_a_merged_path_begins_with_its_span(survivor: str) -> None:
    config = rankwise.Lor2cConfig(r=2, merges=1, edit_unit="steps", total_steps=8, layers_to_transform=[2, 3])
    model: Any = get_peft_model(tiny_llama(4), config)
    rankwise.apply_(model, [rankwise.Merge("layers.2.layer", "layers.3.layer", survivor)])
    assert len(prefix_of(model).blocks) == 2


def test_what_trains_otherwise_counts_too() -> None:
    model = get_peft_model(tiny_llama(4), LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[2]))
    assert len(prefix_of(model).blocks) == 2
    base: Any = model.get_base_model()
    base.model.layers[1].mlp.up_proj.weight.requires_grad_()
    assert len(prefix_of(model).blocks) == 1


def test_a_head_above_the_blocks_may_train() -> None:
    model = adapted(tiny_bert(3), task_type="SEQ_CLS", target_modules=["query"], layers_to_transform=[2])
    assert any(p.requires_grad for name, p in model.named_parameters() if "classifier" in name)
    assert len(prefix_of(model).blocks) == 2


def test_without_a_frozen_block_there_is_none() -> None:
    words = r"something in block 0 trains: put the paths higher \(layers_to_transform=\[...\]\), or leave"
    with pytest.raises(ValueError, match=words):
        prefix_of(adapted(tiny_bert(), target_modules=["query"]))
    with pytest.raises(ValueError, match=words):  # it reads the mid of block 0
        prefix_of(adapted(tiny_bert(), target_modules=[], shortcuts=["cut"]))
    with pytest.raises(ValueError, match=words):
        prefix_of(frozen("llama", 1))


def test_embeddings_that_train_are_named() -> None:
    model = frozen("bert")
    model.bert.embeddings.word_embeddings.weight.requires_grad_()
    with pytest.raises(ValueError, match="here the BertEmbeddings before the blocks trains"):
        prefix_of(model)


def test_a_family_that_is_not_described_has_none() -> None:
    with pytest.raises(ValueError, match=r"Linear has no config\.model_type"):
        prefix_of(nn.Linear(2, 2))
