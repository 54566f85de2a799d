from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from tests.models import adapted, class_batches, fill_, logits, tiny_bert
from torch import Tensor

import rankwise
from rankwise.rules.edits import switches

NAME, OTHER = "layers.0.query", "layers.1.value"


def make(on_disable: str = "keep") -> PeftModel:
    model = adapted(tiny_bert(), target_modules=["query", "value"], on_disable=on_disable, task_type="SEQ_CLS")
    fill_(model)
    return model


def optimizer_of(model: PeftModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)


def steps(model: PeftModel, optimizer: torch.optim.Optimizer, count: int = 2) -> None:
    model.eval()  # no dropout: two runs of the same steps are the same
    for batch in class_batches(count):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def weights(model: PeftModel, name: str = NAME) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in rankwise.named_paths(model)[name].parameters]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_an_edit_switches_its_path_and_no_other() -> None:
    model = make()
    paths = rankwise.named_paths(model)
    rankwise.apply_(model, [rankwise.Disable(NAME), rankwise.Disable(OTHER), rankwise.Enable(OTHER)])
    assert [name for name, path in paths.items() if not path.enabled] == [NAME]
    assert not paths[NAME].contributing
    rankwise.apply_(model, iter([rankwise.Enable(NAME)]))
    assert all(path.enabled and path.contributing for path in paths.values())


@pytest.mark.parametrize("on_disable", ["keep", "reset", "freeze"])
def test_what_a_path_that_is_switched_off_contributes(on_disable: str) -> None:
    model = make(on_disable)
    whole, before = logits(model), weights(model)
    rankwise.apply_(model, [rankwise.Disable(NAME)])
    path, off = rankwise.named_paths(model)[NAME], logits(model)
    assert (path.enabled, path.contributing) == (False, on_disable == "freeze")
    if on_disable == "freeze":
        torch.testing.assert_close(off, whole, rtol=0, atol=0)
    else:
        with torch.no_grad():
            path.lora_B.zero_()
        rankwise.apply_(model, [rankwise.Enable(NAME)])
        torch.testing.assert_close(off, logits(model), rtol=0, atol=1e-7)
        assert not torch.allclose(off, whole, atol=1e-4), "the path made no difference, so the test shows nothing"
        return
    assert same(weights(model), before)


@pytest.mark.parametrize("on_disable", ["keep", "reset", "freeze"])
def test_what_becomes_of_weights_and_moments(on_disable: str) -> None:
    model = make(on_disable)
    optimizer = optimizer_of(model)
    steps(model, optimizer)
    paths = rankwise.named_paths(model)
    path, other = paths[NAME], paths[OTHER]
    moments = [optimizer.state[p]["exp_avg"].clone() for p in path.parameters]
    assert all(bool(m.any()) for m in moments)
    down, up = weights(model)
    groups = [list(group["params"]) for group in optimizer.param_groups]
    rankwise.apply_(model, [rankwise.Disable(NAME)], optimizer)
    at_once = weights(model)
    steps(model, optimizer)
    assert same(at_once, weights(model)), "neither decay nor momentum moves a path that is off"
    assert same(at_once, [down, torch.zeros_like(up) if on_disable == "reset" else up])
    assert all(parameter.grad is None for parameter in path.parameters)
    assert all(parameter.requires_grad for parameter in path.parameters)
    assert [list(map(id, group)) for group in groups] == [list(map(id, g["params"])) for g in optimizer.param_groups]
    if on_disable == "reset":
        assert not any(parameter in optimizer.state for parameter in path.parameters)
    else:
        assert same([optimizer.state[p]["exp_avg"] for p in path.parameters], moments)
    assert all(parameter in optimizer.state for parameter in other.parameters)
    rankwise.apply_(model, [rankwise.Enable(NAME)], optimizer)
    steps(model, optimizer)
    assert not torch.equal(path.lora_B, at_once[1]), "it trains again"


@pytest.mark.parametrize(("on_disable", "contributes"), [("keep", False), ("reset", False), ("freeze", True)])
def test_switching_off_twice_is_switching_off_once(on_disable: str, contributes: bool) -> None:
    model = make(on_disable)
    rankwise.apply_(model, [rankwise.Disable(NAME)] * 2)
    rankwise.apply_(model, [rankwise.Disable(NAME)])
    path = rankwise.named_paths(model)[NAME]
    assert (path.enabled, path.contributing) == (False, contributes)


def test_a_gradient_that_waits_for_its_step_goes_with_the_path() -> None:
    model = make()
    model(**class_batches()[0]).loss.backward()
    path = rankwise.named_paths(model)[NAME]
    assert [p.grad is None for p in path.parameters] == [False, False]
    rankwise.apply_(model, [rankwise.Disable(NAME)])
    assert [p.grad is None for p in path.parameters] == [True, True]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("layers.0.quary", "Disable.*'layers.0.quary'.*did you mean 'layers.0.query'.*named_paths"),
        ("query", "names no path of adapter 'default'"),
        ("", "names no path"),
    ],
)
def test_an_unknown_name_is_corrected_and_nothing_is_applied(name: str, words: str) -> None:
    model = make("reset")
    optimizer = optimizer_of(model)
    steps(model, optimizer)
    before = weights(model)
    with pytest.raises(ValueError, match=words):
        rankwise.apply_(model, [rankwise.Disable(NAME), rankwise.Disable(name)], optimizer)
    assert rankwise.named_paths(model)[NAME].enabled
    assert same(weights(model), before)
    assert all(parameter in optimizer.state for parameter in rankwise.named_paths(model)[NAME].parameters)


def test_what_is_no_edit_is_named_and_takes_back_what_came_before() -> None:
    model = make()
    with pytest.raises(ValueError, match=r"'layers\.0\.query' is a str and no edit: give rankwise\.Enable"):
        rankwise.apply_(model, [rankwise.Disable(NAME), "layers.0.query"])  # type: ignore[list-item]
    assert rankwise.named_paths(model)[NAME].enabled


def test_edits_of_one_adapter_leave_the_other_alone() -> None:
    model = make()
    model.add_adapter(
        "other", rankwise.HeteroLoraConfig(r=2, target_modules=["query"], mode="off", task_type="SEQ_CLS")
    )
    rankwise.apply_(model, [rankwise.Disable(NAME)], adapter="other")
    assert rankwise.named_paths(model, "default")[NAME].enabled
    assert not rankwise.named_paths(model, "other")[NAME].enabled
    with pytest.raises(ValueError, match=r"'layers\.1\.value'.* names no path of adapter 'other'"):
        rankwise.apply_(model, [rankwise.Disable(OTHER)], adapter="other")
    with pytest.raises(ValueError, match="adapter 'third' has no rankwise paths; those that have: 'default', 'other'"):
        rankwise.apply_(model, [], adapter="third")


def test_the_edits_between_two_allocations() -> None:
    assert switches(["b", "a", "c"], {"c", "e", "d"}) == [
        *(rankwise.Disable(name) for name in ("a", "b")),
        *(rankwise.Enable(name) for name in ("d", "e")),
    ]
    assert switches({"a"}, {"a"}) == []


def test_a_model_without_paths_is_named() -> None:
    with pytest.raises(ValueError, match="BertForSequenceClassification has no rankwise paths; make some"):
        rankwise.apply_(tiny_bert(), [rankwise.Disable(NAME)])


def test_one_edit_is_no_list_of_edits() -> None:
    with pytest.raises(ValueError, match=r"is one edit, and a list of them is needed: \[Disable\("):
        rankwise.apply_(make(), rankwise.Disable(NAME))  # type: ignore[arg-type]
