"""Block paths in every family, against hand-written forward passes in float64."""

from __future__ import annotations

import random
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.families import FAMILIES, Family
from tests.models import adapted, fill_, keep_only_, logits, tokens
from tests.references import reference
from tests.shortcuts import made
from torch import Tensor

import rankwise
from rankwise.wiring.block_host import BlockHost

LENGTH = 7  # longer than the sliding windows
ALL = ("res1", "res2", "in", "cut")
POST = [name for name, family in FAMILIES.items() if family.post_norm]
PRE = [name for name in FAMILIES if name not in POST]
CAUSAL = [name for name, family in FAMILIES.items() if family.causal]
CARRYING = [name for name in FAMILIES if name in ("opt-pre", "vit")]  # a dropout lies between branch and sum
# Each family with each norm it may have.
VARIANTS = [(name, "inside") for name in FAMILIES] + [(name, "reapply") for name in POST]

Gradients = dict[str, Tensor]  # by path and factor: "layers.0.in.A"


def text(seed: int = 0) -> Tensor:
    return tokens(length=LENGTH, seed=seed)


def kinds(family: Family) -> tuple[str, ...]:
    """Every kind that may be had together: on a pre-LN model ``in`` and ``layer`` are the same path."""
    return (*ALL, "layer") if family.post_norm else ALL


def float64(
    family: Family, shortcuts: Collection[str] = ALL, *, norm: str = "inside", filled: bool = True, **fields: Any
) -> Any:
    """Adapt a tiny model with linear paths on q and v, and block paths; ``filled`` gives every path's B values."""
    model = adapted(
        family().double(),
        target_modules=list(family.targets),
        shortcuts=list(shortcuts),
        shortcut_r=3,
        shortcut_alpha=5.0,
        shortcut_norm=norm,
        **fields,
    ).double()
    if filled:
        fill_(model)
    return model


def enabled(model: Any) -> dict[str, rankwise.LowRankPath]:
    return {name: path for name, path in rankwise.named_paths(model).items() if path.enabled}


def loss_of(logits: Tensor) -> Tensor:
    """Weigh every logit by a fixed number of its own."""
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(9), dtype=logits.dtype)
    return (logits * weights).sum()


def gradients(model: Any) -> Gradients:
    """Take the gradients out of the model: every enabled path has two, no other path has any."""
    found: Gradients = {}
    for name, path in rankwise.named_paths(model).items():
        for factor, parameter in (("A", path.lora_A), ("B", path.lora_B)):
            assert (parameter.grad is not None) == path.enabled, f"{name}.{factor}"
            if parameter.grad is not None:
                found[f"{name}.{factor}"] = parameter.grad
                parameter.grad = None
    return found


def trained(model: Any, ids: Tensor | None = None) -> tuple[Tensor, Gradients]:
    """Return the model's logits and gradients."""
    found = model(input_ids=text() if ids is None else ids).logits
    loss_of(found).backward()
    return found.detach(), gradients(model)


def expected(family: Family, model: Any, *, norm: str = "inside") -> tuple[Tensor, Gradients]:
    """Return the reference's logits and gradients, with the weights that the model's enabled paths have."""
    on = {
        name: (path.lora_A.detach().clone().requires_grad_(), path.lora_B.detach().clone().requires_grad_(), path)
        for name, path in enabled(model).items()
    }
    weights = {name: (a, b, path.scaling) for name, (a, b, path) in on.items()}
    found = reference(family().double(), text(), weights, built=set(rankwise.named_paths(model)), norm=norm)
    factors = {f"{name}.{factor}": leaf for name, (a, b, _) in on.items() for factor, leaf in (("A", a), ("B", b))}
    if not factors:
        return found.detach(), {}
    found_gradients = torch.autograd.grad(loss_of(found), list(factors.values()))
    return found.detach(), dict(zip(factors, found_gradients, strict=True))


def assert_near(actual: Tensor, wanted: Tensor, what: str, tolerance: float = 1e-10) -> None:
    scale = max(1.0, wanted.abs().max().item())
    torch.testing.assert_close(actual, wanted, rtol=0.0, atol=tolerance * scale, msg=lambda text: f"{what}: {text}")


def assert_same(actual: tuple[Tensor, Gradients], wanted: tuple[Tensor, Gradients], tolerance: float = 1e-10) -> None:
    assert_near(actual[0], wanted[0], "logits", tolerance)
    assert actual[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        assert gradient.abs().max() > 0, f"{name} has no influence: the comparison says nothing"
        assert_near(actual[1][name], gradient, name, tolerance)


def disable_some_(model: Any, seed: int) -> None:
    """Switch half of the paths off, of each kind at least one and never all, as a seeded draw says."""
    generator = random.Random(seed)
    by_kind: dict[str, list[str]] = {}
    for name, path in rankwise.named_paths(model).items():
        by_kind.setdefault(path.kind, []).append(name)
    off = [name for names in by_kind.values() for name in generator.sample(names, (len(names) + 1) // 2)]
    rankwise.apply_(model, [rankwise.Disable(name) for name in off])


# The reference itself.


@pytest.mark.parametrize("name", FAMILIES)
def test_without_paths_the_reference_is_the_base_model(name: str) -> None:
    base = FAMILIES[name]().double()
    assert_near(logits(base, text()), reference(base, text(), {}), "logits", 1e-12)


# What is built.


@pytest.mark.parametrize("name", FAMILIES)
def test_every_block_has_every_kind_but_the_first_has_no_cut(name: str) -> None:
    family = FAMILIES[name]
    paths = rankwise.named_paths(float64(family, kinds(family)))
    wanted = {f"layers.{block}.{kind}" for block in range(3) for kind in kinds(family)} - {"layers.0.cut"}
    wanted |= {f"layers.{block}.{target}" for block in range(3) for target in family.targets}
    assert set(paths) == wanted
    for path_name, path in paths.items():
        kind = path_name.rpartition(".")[2]
        assert path.kind == ("linear" if kind in family.targets else kind)
        if path.kind != "linear":
            assert (tuple(path.lora_A.shape), tuple(path.lora_B.shape)) == ((3, 16), (16, 3))
            assert path.scaling == pytest.approx(5 / 3)


@pytest.mark.parametrize("name", PRE)
def test_in_and_layer_together_are_refused_where_they_are_the_same_path(name: str) -> None:
    with pytest.raises(ValueError, match="layer"):
        float64(FAMILIES[name], ["in", "layer"])


@pytest.mark.parametrize("name", PRE)
def test_a_second_norm_is_refused_where_it_would_destroy_the_residual_stream(name: str) -> None:
    with pytest.raises(ValueError, match="reapply"):
        float64(FAMILIES[name], norm="reapply")


# Values and gradients.


@pytest.mark.parametrize(("name", "norm"), VARIANTS)
def test_all_paths_on(name: str, norm: str) -> None:
    family = FAMILIES[name]
    model = float64(family, kinds(family), norm=norm)
    assert_same(trained(model), expected(family, model, norm=norm))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("name", "norm"), VARIANTS)
def test_a_random_half_off(name: str, norm: str, seed: int) -> None:
    family = FAMILIES[name]
    model = float64(family, kinds(family), norm=norm)
    disable_some_(model, seed)
    assert_same(trained(model), expected(family, model, norm=norm))


@pytest.mark.parametrize("kind", [*ALL, "layer"])
@pytest.mark.parametrize(("name", "norm"), VARIANTS)
def test_one_kind_alone(name: str, norm: str, kind: str) -> None:
    family = FAMILIES[name]
    model = float64(family, [kind], norm=norm)
    assert_same(trained(model), expected(family, model, norm=norm))


@pytest.mark.parametrize(("name", "norm"), VARIANTS)
def test_the_last_block_alone_has_paths(name: str, norm: str) -> None:
    family = FAMILIES[name]
    model = float64(family, kinds(family), norm=norm, layers_to_transform=[2])  # its cut reads a block without paths
    assert {path.blocks for path in enabled(model).values()} == {(2, 2)}
    assert_same(trained(model), expected(family, model, norm=norm))


@pytest.mark.parametrize("name", PRE)
def test_layer_beside_the_kinds_it_may_stand_with(name: str) -> None:
    family = FAMILIES[name]
    model = float64(family, ["res1", "res2", "cut", "layer"])
    assert_same(trained(model), expected(family, model))


@pytest.mark.parametrize("name", POST)
def test_the_second_norm_stays_where_every_path_is_off(name: str) -> None:
    family = FAMILIES[name]
    model = float64(family, norm="reapply")
    keep_only_(model)
    found = logits(model, text())
    assert_near(found, expected(family, model, norm="reapply")[0], "logits")
    assert not torch.allclose(found, logits(family().double(), text()), atol=1e-3)


@pytest.mark.parametrize("name", PRE)
def test_in_is_layer_on_a_pre_norm_model(name: str) -> None:
    into, layer = (float64(FAMILIES[name], ["res1", kind]) for kind in ("in", "layer"))
    sources = {path_name.replace(".in", ".layer"): path for path_name, path in rankwise.named_paths(into).items()}
    with torch.no_grad():
        for path_name, path in rankwise.named_paths(layer).items():
            path.lora_A.copy_(sources[path_name].lora_A)
            path.lora_B.copy_(sources[path_name].lora_B)
    actual = trained(layer)
    wanted = trained(into)
    renamed = {key.replace(".in.", ".layer."): gradient for key, gradient in wanted[1].items()}
    assert_same(actual, (wanted[0], renamed), 1e-12)


# Exactly the base model.


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fresh_model_is_exactly_the_base_model(name: str) -> None:
    family = FAMILIES[name]
    model = float64(family, kinds(family), filled=False)
    assert torch.equal(logits(model, text()), logits(family().double(), text()))


@pytest.mark.parametrize("name", FAMILIES)
def test_with_every_path_off_it_is_exactly_the_base_model(name: str) -> None:
    family = FAMILIES[name]
    model = float64(family, kinds(family))
    keep_only_(model)
    assert torch.equal(logits(model, text()), logits(family().double(), text()))


@pytest.mark.parametrize(("name", "norm"), VARIANTS)
def test_disable_adapter_is_exactly_the_base_model_and_comes_back(name: str, norm: str) -> None:
    family = FAMILIES[name]
    model = float64(family, kinds(family), norm=norm)
    before = logits(model, text())
    with model.disable_adapter():
        assert torch.equal(logits(model, text()), logits(family().double(), text()))
    assert torch.equal(logits(model, text()), before)
    assert not torch.allclose(before, logits(family().double(), text()), atol=1e-3)


# Training and generation.


def checkpointed(model: Any, *, reentrant: bool) -> Any:
    """Switch checkpointing on as Trainer does: after the paths are built."""
    base = model.get_base_model()
    base.activation_checkpointing_enable({"use_reentrant": reentrant})
    if base.main_input_name != "input_ids":  # where there are ids transformers does this itself
        base.enable_input_require_grads()
    return model.train()


@pytest.mark.parametrize(("name", "norm"), VARIANTS)
def test_gradients_are_the_same_with_checkpointing(name: str, norm: str) -> None:
    family = FAMILIES[name]
    wanted = trained(float64(family, kinds(family), norm=norm))
    model = checkpointed(float64(family, kinds(family), norm=norm), reentrant=False)
    assert_same(trained(model), wanted, 1e-12)


@pytest.mark.parametrize(("name", "norm"), VARIANTS)
def test_gradients_are_the_same_with_reentrant_checkpointing_where_it_is_allowed(name: str, norm: str) -> None:
    family = FAMILIES[name]
    allowed = ["layer"] if name in CARRYING else [kind for kind in kinds(family) if kind != "cut"]
    wanted = trained(float64(family, allowed, norm=norm))
    model = checkpointed(float64(family, allowed, norm=norm), reentrant=True)
    assert_same(trained(model), wanted, 1e-12)


@pytest.mark.parametrize(
    ("name", "kind"), [(name, "cut") for name in FAMILIES] + [(name, kind) for name in CARRYING for kind in ALL[:3]]
)
def test_reentrant_checkpointing_is_refused_where_it_would_be_silently_wrong(name: str, kind: str) -> None:
    model = checkpointed(float64(FAMILIES[name], [kind]), reentrant=True)
    with pytest.raises(ValueError, match="reentrant"):
        model(input_ids=text())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("name", "norm"), VARIANTS)
def test_two_forwards_before_a_backward_give_the_sum_of_gradients(name: str, norm: str, checkpointing: bool) -> None:
    family = FAMILIES[name]
    model = float64(family, kinds(family), norm=norm)
    if checkpointing:
        checkpointed(model, reentrant=False)
    one, two = (trained(model, text(seed))[1] for seed in (1, 2))
    first = model(input_ids=text(1)).logits
    with torch.no_grad(), model.disable_adapter():  # DPO's reference pass
        model(input_ids=text(1))
    second = model(input_ids=text(2)).logits
    (loss_of(first) + loss_of(second)).backward()
    both = gradients(model)
    for path_name, gradient in both.items():
        assert_near(gradient, one[path_name] + two[path_name], path_name, 1e-12)


@pytest.mark.parametrize(("name", "norm"), [variant for variant in VARIANTS if variant[0] in CAUSAL])
def test_token_by_token_with_a_cache_gives_the_logits_of_all_at_once(name: str, norm: str) -> None:
    family = FAMILIES[name]
    model = float64(family, kinds(family), norm=norm)
    cache, steps = None, []
    with torch.no_grad():
        for ids in text().split([3, *[1] * (LENGTH - 3)], dim=1):
            output = model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            steps.append(output.logits)
    assert_near(torch.cat(steps, dim=1), logits(model, text()), "logits")


def test_a_loaded_path_and_its_record_go_where_its_block_is() -> None:
    """PEFT asks every layer to, after it put a file's tensors in place on the accelerator."""
    model: Any = made("llama")
    for host in (path.host for path in rankwise.named_paths(model).values()):
        if isinstance(host, BlockHost):
            assert host.like().shape == model.get_base_model().model.layers[0].self_attn.q_proj.weight.shape
            block: Any = host
            block.like = lambda: SimpleNamespace(device=torch.device("meta"), is_meta=False)
            host._move_adapter_to_device_of_base_layer("default")
        else:
            host._move_adapter_to_device_of_base_layer("default", torch.device("meta"))
    adapter = {key: value.device.type for key, value in model.state_dict().items() if "lora_" in key}
    assert len(adapter) == 3 * len(rankwise.named_paths(model))
    assert set(adapter.values()) == {"meta"}
