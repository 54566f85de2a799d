"""A refusal leaves nothing behind: modules, hooks, attributes and what trains are as before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.method.test_surface import ours, structure
from tests.models import fill_, logits, tiny_bert
from tests.traces import assert_same, snapshot
from torch import nn

import rankwise
from rankwise.method.unwinding import unwound
from rankwise.paths.path_set import path_sets


class Broken(RuntimeError):
    """What goes wrong inside."""


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.ReLU()
        self.register_buffer("seen", torch.zeros(1))
        self.notes: list[str] = ["as it was"]
        self.table = {"a": 1}
        self.chosen = {1, 2}


def built(model: Any) -> None:
    """Change a model in every way that building an adapter may."""
    model.first.bias.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        model.first = nn.Sequential(model.first, nn.Linear(2, 2))
        model.third = nn.Linear(2, 2)
    del model.second
    model.register_buffer("more", torch.ones(1))
    model.register_parameter("own", nn.Parameter(torch.ones(1)))
    model.register_forward_hook(lambda *_: None)
    model.register_forward_pre_hook(lambda *_: None)
    model.mark = "built"
    model.notes.append("built")
    model.notes[0] = "changed"
    model.table["b"] = 2
    model.chosen.clear()
    model.train(not model.training)


def failing(
    model: Any, change: Callable[[Any], Any], *, always: bool = True, error: type[BaseException] = Broken
) -> None:
    """Change a model, then fail."""
    with unwound(model, always=always):
        change(model)
        raise error


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
def test_everything_is_put_back_whatever_it_was(error: type[BaseException]) -> None:
    model = Small().eval()
    before, names = snapshot(model), [name for name, _ in model.named_modules()]
    containers = [id(each) for each in (model.__dict__, model._modules, model.notes, model.table, model.chosen)]
    with pytest.raises(error):
        failing(model, built, error=error)
    assert_same(before, snapshot(model))
    assert [name for name, _ in model.named_modules()] == names
    assert (model.notes, model.table, model.chosen) == (["as it was"], {"a": 1}, {1, 2})
    again = [id(each) for each in (model.__dict__, model._modules, model.notes, model.table, model.chosen)]
    assert again == containers, "who holds a container sees it put back"


def test_what_was_built_stays_where_nothing_went_wrong() -> None:
    model: Any = Small()
    with unwound(model):
        built(model)
    assert [name for name, _ in model.named_children()] == ["first", "third"]
    assert not model.first[0].bias.requires_grad
    assert model.notes == ["changed", "built"]


def test_values_are_not_looked_at() -> None:
    model = Small()
    with pytest.raises(Broken):
        failing(model, lambda model: nn.init.constant_(model.first.weight, 3.0))
    assert bool((model.first.weight == 3.0).all())


@pytest.mark.parametrize("ours_too", [False, True])
def test_what_another_method_built_is_put_back_where_that_is_asked_for(ours_too: bool) -> None:
    """Loading a plain LoRA is PEFT's own business, unless there are paths beside it."""
    model: Any = ours().get_base_model() if ours_too else tiny_bert()
    with pytest.raises(Broken):
        failing(model, lambda model: setattr(model, "mark", "built"), always=False)
    assert hasattr(model, "mark") != ours_too
    with pytest.raises(Broken):
        failing(model, lambda model: setattr(model, "another", "built"))
    assert not hasattr(model, "another")


def test_paths_that_came_inside_count_as_ours() -> None:
    base = tiny_bert()
    before = structure(base)
    with pytest.raises(Broken):
        failing(base, ours, always=False)
    assert structure(base) == before


def test_hooks_of_block_paths_find_what_they_found_before() -> None:
    model = get_peft_model(tiny_bert(), rankwise.Lor2cConfig(task_type="SEQ_CLS", r=2)).eval()
    fill_(model)
    expected = logits(model)
    wiring = path_sets(model).wiring  # type: ignore[attr-defined]
    hosts = [wiring.layer_hosts, *(taps.hosts for taps in wiring.taps)]
    before = [dict(each) for each in hosts]
    assert any(before)

    def emptied(model: Any) -> None:
        for each in hosts:
            each.clear()
        assert not torch.equal(logits(model), expected)

    with pytest.raises(Broken):
        failing(model, emptied)
    assert [dict(each) for each in hosts] == before
    assert torch.equal(logits(model), expected)


def refused_late(model: Any) -> Any:
    """LoRA waits in the blocks, and only when all of it is built do fewer blocks have some than edits want."""
    return get_peft_model(
        model,
        rankwise.Lor2cConfig(
            task_type="SEQ_CLS", r=2, injections=2, inject_targets=["encoder.layer.0.attention.self.query"]
        ),
    )


def test_a_refusal_after_injection_leaves_nothing_behind() -> None:
    base = tiny_bert()
    before, wanted = structure(base), logits(base)
    with pytest.raises(ValueError, match="injections"):
        refused_late(base)
    assert structure(base) == before
    model = ours(base)
    assert len(rankwise.named_paths(model)) == 4
    assert torch.equal(logits(model), wanted)


def test_a_second_adapter_that_is_refused_leaves_the_first_as_it_was() -> None:
    model = get_peft_model(tiny_bert(), rankwise.Lor2cConfig(task_type="SEQ_CLS", r=2))
    fill_(model)
    before, wanted = structure(model), logits(model)
    late = rankwise.Lor2cConfig(
        task_type="SEQ_CLS", r=2, injections=2, inject_targets=["encoder.layer.0.attention.self.query"]
    )
    with pytest.raises(ValueError, match="injections"):
        model.add_adapter("late", late)
    assert structure(model) == before
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits(model), wanted)
    model.add_adapter("late", rankwise.Lor2cConfig(r=3))
    assert list(rankwise.named_paths(model, "late")) == ["layers.0.layer", "layers.1.layer"]


def test_an_adapter_of_another_model_that_is_refused_leaves_the_base_as_it_was(tmp_path: Path) -> None:
    ours(tiny_bert(blocks=3)).save_pretrained(str(tmp_path))
    base = tiny_bert()
    before = structure(base)
    with pytest.raises(ValueError, match="no place for"):
        PeftModel.from_pretrained(base, tmp_path)
    assert structure(base) == before
    model = ours(base)
    before = structure(model)
    with pytest.raises(ValueError, match="no place for"):
        model.load_adapter(str(tmp_path), "other")
    assert structure(model) == before
    assert list(model.peft_config) == ["default"]
