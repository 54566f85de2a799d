"""A projection with its path beside it: what it computes, and where it leaves that to PEFT."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import get_peft_model
from tests.models import adapted, class_batches, fill_, keep_only_, tiny_bert, tiny_llama
from tests.paths.test_fused import QUERY, STILL, assert_same_step, drawn, nodes
from tests.shortcuts import batches
from torch import Tensor, nn

import rankwise
from rankwise.paths.fused import plain_paths
from rankwise.paths.linear import PathLinear
from rankwise.paths.path_set import path_set
from rankwise.scores.recorder import StatisticRecorder
from rankwise.scores.statistics import WeightGradient


class Two(nn.Module):
    """A projection with a bias and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.biased = nn.Linear(5, 4)
        self.bare = nn.Linear(5, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.biased(x) + self.bare(x)
        return found


def two(**fields: Any) -> Any:
    config = rankwise.HeteroLoraConfig(
        r=2, lora_alpha=3, target_modules=["biased", "bare"], **{"mode": "off", **fields}
    )
    model: Any = get_peft_model(Two(), config).double()
    fill_(model)
    return model.train()


@pytest.mark.parametrize("name", ["biased", "bare"])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5), (2, 0, 5)])
def test_it_is_the_formula_token_by_token(shape: tuple[int, ...], name: str) -> None:
    model = two()
    layer = model.get_base_model().get_submodule(name)
    assert isinstance(layer, PathLinear)
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain: Any = layer.base_layer
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = torch.zeros(len(x.reshape(-1, 5)), 4, dtype=torch.float64)
    for place, token in enumerate(x.reshape(-1, 5)):
        expected[place] = plain.weight @ token + 1.5 * (b @ (a @ token))
        if name == "biased":
            expected[place] += plain.bias
    expected = expected.reshape(*shape[:-1], 4)
    torch.testing.assert_close(layer(x), expected)


def test_a_path_that_is_off_leaves_the_projection_alone() -> None:
    model = two()
    layer = model.get_base_model().biased
    rankwise.apply_(model, [rankwise.Disable("biased")])
    x = torch.ones(3, 5, dtype=torch.float64)
    assert torch.equal(layer(x), layer.base_layer(x))
    assert not layer(x).requires_grad


@pytest.mark.parametrize("training", [False, True])
def test_what_only_peft_understands_is_passed_on(training: bool) -> None:
    """Names of adapters by row: the second row is the base model's alone."""
    layer = two().get_base_model().biased.train(training)
    x = torch.ones(2, 5, dtype=torch.float64)
    found = layer(x, adapter_names=["default", "__base__"])
    torch.testing.assert_close(found[0], layer(x)[0])
    torch.testing.assert_close(found[1], layer.base_layer(x)[1])
    assert not torch.allclose(found[0], found[1])


def test_every_projection_of_a_plain_model_is_one_node() -> None:
    model = adapted(tiny_llama(), task_type="CAUSAL_LM", target_modules="all-linear").double().train()
    fill_(model)
    (batch,) = batches("llama")
    assert_same_step(model, batch, len(rankwise.named_paths(model)))


def several(model: Any) -> None:
    model.add_adapter("other", rankwise.HeteroLoraConfig(r=3, target_modules=["q_proj"], mode="off"))
    model.base_model.set_adapter(["default", "other"])
    model.double()


def first(model: Any) -> Any:
    return model.get_base_model().model.layers[0].self_attn.q_proj


def heard(model: Any) -> None:
    first(model).base_layer.register_forward_hook(lambda module, args, output: output * 2)
    first(model).lora_A["default"].register_forward_hook(lambda module, args, output: output * 3)


def thawed(model: Any) -> None:
    first(model).base_layer.weight.requires_grad_()


def mixed(model: Any) -> None:
    model.to(torch.bfloat16)
    for path in rankwise.named_paths(model).values():
        path.host.lora_A.float()
        path.host.lora_B.float()


CHANGES: dict[Callable[[Any], None], int] = {several: 4, heard: 1, thawed: 2, mixed: 0}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_not_plain_goes_peft_s_way(change: Callable[[Any], None]) -> None:
    """Of two projections; one that only its base excludes still adds its path in one node."""
    model = adapted(tiny_llama(), target_modules=["q_proj"]).double()
    fill_(model)
    change(model)
    (batch,) = batches("llama")
    assert_same_step(model.train(), batch, CHANGES[change])


@pytest.mark.parametrize("way", ["evaluating", "merged", "disabled"])
def test_nothing_is_fused_where_no_path_trains(way: str) -> None:
    model: Any = adapted(tiny_bert(**STILL), **QUERY)
    fill_(model)
    (batch,) = class_batches(1)
    model.train(way != "evaluating")
    if way == "merged":
        model.merge_adapter()
    with model.disable_adapter() if way == "disabled" else nullcontext():
        assert nodes(model(**batch).loss) == 0


class InPlace(nn.Module):
    """A projection whose output is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)
        self.after = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.after(self.proj(x))
        return found


def in_place() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(InPlace(), rankwise.HeteroLoraConfig(r=2, target_modules=["proj"], mode="off"))
    fill_(model)
    return model.train()


@pytest.mark.parametrize("seen", ["plain", "recorded", "tied"])
def test_what_comes_after_may_change_the_output_in_place(seen: str) -> None:
    model = in_place()
    session = path_set(model).session
    if seen == "tied":
        keep_only_(model)
        session.tied = True
    if seen == "recorded":
        session.recorder = StatisticRecorder(WeightGradient())
    x = drawn(3, 4, seed=0, dtype=torch.float32)
    model(x).sum().backward()
    found = x.grad
    with plain_paths():
        (expected,) = torch.autograd.grad(torch.relu(model.get_base_model().proj(x)).sum(), x)
    torch.testing.assert_close(found, expected)


def test_a_backward_pass_inside_autocast_has_the_precision_of_its_forward_pass() -> None:
    model = in_place()
    x = drawn(3, 4, seed=0, dtype=torch.float32)
    loss = model(x).sum()
    (expected,) = torch.autograd.grad(loss, x, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = torch.autograd.grad(loss, x)
    assert torch.equal(found, expected)


def test_a_path_that_is_frozen_keeps_nothing_for_its_backward_pass() -> None:
    model = in_place()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    x = drawn(3, 4, seed=0, dtype=torch.float32)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        y = model(x)
    assert not any(t.shape == x.shape and t.data_ptr() == x.data_ptr() for t in kept)
    y.sum().backward()
    assert x.grad is not None


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own, on its way
def test_forward_mode_and_the_meta_device_go_through_the_formula() -> None:
    model = in_place()
    x = drawn(3, 4, seed=0, dtype=torch.float32).detach()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(model(dual)).tangent is not None
    assert model.to("meta")(x.to("meta")).shape == (3, 4)


def test_global_hooks_hear_every_layer() -> None:
    model = in_place()
    heard: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: heard.append(type(module).__name__))
    try:
        model(torch.ones(3, 4))
    finally:
        handle.remove()
    assert heard.count("Linear") == 3  # the projection, A and B
