"""All paths of one adapter: what they cost, and how they are found through any wrapper."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.models import fill_, keep_only_, logits, one_of_trio, tiny_bert
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

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


class Twin(nn.Module):
    """Two networks of which one's names end in the other's."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 8))
        self.teacher = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(8, 6))})
        self.model = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(8, 8))})  # as PEFT's own prefix ends

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.teacher["encoder"](self.model["encoder"](self.encoder(x)))
        return made


def test_a_tensor_belongs_to_the_module_whose_whole_name_it_has() -> None:
    model = get_peft_model(Twin(), rankwise.HeteroLoraConfig(r=2, target_modules=["0"], mode="off"))
    paths = path_set(model)
    for prefix in ("", "base_model.model.", "module.base_model.model.", "module._orig_mod.base_model.model."):
        for module in ("encoder.0", "teacher.encoder.0", "model.encoder.0"):
            key = f"{prefix}{module}.lora_B.default.weight"
            assert paths.owners([key])[key].module == module
    assert paths.owners(["base_model.model.encoder.0.weight", "encoder.0.lora_B.other.weight", "head.weight"]) == {}


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_switching_one_off_keeps_what_its_namesake_has_learned(low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    for off in ("encoder.0", "teacher.encoder.0", "model.encoder.0"):
        model = get_peft_model(Twin(), rankwise.HeteroLoraConfig(r=2, target_modules=["0"], mode="off")).eval()
        base = copy.deepcopy(model).unload()
        fill_(model)
        rankwise.apply_(model, [rankwise.Disable(off)])
        model.save_pretrained(str(tmp_path / off), enabled_only=True)
        again = PeftModel.from_pretrained(base, str(tmp_path / off), low_cpu_mem_usage=low_cpu_mem_usage).eval()
        x = torch.ones(3, 8)
        assert torch.equal(again(x), model(x))


def test_the_average_of_a_model_that_is_searched_computes_what_it_does() -> None:
    """``AveragedModel`` copies buffers in place."""
    model = one_of_trio("llama", mode="off")
    fill_(model)
    average = AveragedModel(model)
    rankwise.apply_(model, [rankwise.Disable("layers.0.q_proj"), rankwise.Disable("layers.1.v_proj")])
    average.update_parameters(model)
    assert torch.equal(logits(average.module), logits(model))
    names = [name for name, path in rankwise.named_paths(model).items() if path.enabled]
    assert [name for name, path in rankwise.named_paths(average.module).items() if path.enabled] == names


def test_a_model_whose_last_adapter_is_gone_has_no_paths() -> None:
    model = one_of_trio("bert")
    model.delete_adapter("default")
    with pytest.raises(ValueError, match="has no rankwise paths; make some with"):
        rankwise.named_paths(model)


def test_a_block_path_that_would_be_frozen_is_not_to_be_switched_off() -> None:
    model = one_of_trio("llama", shortcuts=["res1"], on_disable="freeze", mode="off")
    fill_(model)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"\(save_pretrained\); what is frozen .* stays in the sum$"):
            model.merge_and_unload()
        rankwise.apply_(model, [rankwise.Disable(name) for name in rankwise.named_paths(model)])
