"""All paths of one adapter: what they cost, and how they are found through any wrapper."""

from __future__ import annotations

import copy

import pytest
from peft import get_peft_model
from tests.models import keep_only_, one_of_trio, tiny_bert
from torch import nn

import rankwise
from rankwise.paths.path_set import _modules_of, head_parameters, path_set, path_sets


def test_each_parameter_counts_once() -> None:
    model = get_peft_model(tiny_bert(3), rankwise.Lor2cConfig(r=2, share=True))
    paths = path_set(model)
    assert paths.counts() == dict.fromkeys(("enabled", "contributing", "resident"), 2 * 16 + 3 * 16 * 2) | {"frozen": 0}
    rankwise.apply_(model, [rankwise.Disable("layers.1.layer")])
    assert paths.counts()["enabled"] == 2 * 16 + 2 * 16 * 2
    idle = paths.idle_parameters()
    assert len(idle) == 1, "the A that the others still use is not idle"
    assert idle[0] is rankwise.named_paths(model)["layers.1.layer"].lora_B


def test_a_path_set_is_found_through_any_wrapper() -> None:
    model = one_of_trio("bert")
    own = path_set(model)
    for wrapped in (nn.Sequential(model), nn.ModuleDict({"policy": model}), model.get_base_model()):
        assert path_set(wrapped) is own


def test_which_of_several_is_asked() -> None:
    two = nn.ModuleDict({"policy": one_of_trio("bert"), "value": one_of_trio("opt")})
    with pytest.raises(ValueError, match=r"2 parts of this ModuleDict have rankwise paths \('policy', 'value'\)"):
        path_sets(two)
    with pytest.raises(ValueError, match="Linear has no rankwise paths; make some with"):
        path_sets(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="adapter 'other' has no rankwise paths; those that have: 'default'"):
        path_set(one_of_trio("bert"), "other")


def test_a_deleted_adapter_is_no_longer_listed() -> None:
    model = one_of_trio("bert")
    model.add_adapter("second", rankwise.HeteroLoraConfig(r=1, mode="off", target_modules=["query"]))
    assert list(path_sets(model)) == ["default", "second"]
    model.delete_adapter("second")
    assert list(path_sets(model)) == ["default"]


def test_the_head_counts_once_and_apart_from_all_adapters() -> None:
    model = one_of_trio("bert")
    model.add_adapter("second", rankwise.HeteroLoraConfig(r=1, mode="off", target_modules=["query"]))
    head = sum(p.numel() for name, p in model.named_parameters() if "modules_to_save.default" in name)
    assert head_parameters(model, path_set(model)) == head == 16 * 2 + 2


def test_a_copy_is_its_own() -> None:
    model = one_of_trio("bert")
    twin = copy.deepcopy(model)
    keep_only_(twin)
    assert path_set(model).enabled
    assert not path_set(twin).enabled
    assert path_set(twin).session is not path_set(model).session


def test_modules_are_walked_as_torch_does() -> None:
    model = one_of_trio("opt")
    twice = nn.ModuleList([model, model.get_base_model(), nn.Sequential(nn.Linear(2, 2)), nn.Identity()])
    twice.register_module("nothing", None)
    twice.append(twice[2])
    assert [(name, id(module)) for name, module in _modules_of(twice)] == [
        (name, id(module)) for name, module in twice.named_modules()
    ]
    own = {id(p) for path in path_set(model).resident for p in path.parameters}
    trains = {id(p): p.numel() for p in model.parameters() if p.requires_grad and id(p) not in own}
    assert head_parameters(model, path_set(model)) == sum(trains.values())
