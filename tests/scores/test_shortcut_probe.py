"""A probe of a model with block paths leaves no trace, whatever happens inside it, and scores all kinds in one pass."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from tests.families import FAMILIES
from tests.models import Batch, adapted, fill_, tokens
from tests.traces import assert_same, snapshot
from torch import Tensor, nn

import rankwise
from rankwise.wiring.wiring import Wiring

VARIANTS = [("bert", "inside"), ("bert", "reapply"), ("opt-post", "inside"), ("opt-pre", "inside"), ("llama", "inside")]
KINDS = ("res1", "res2", "in", "cut")


class Broken(RuntimeError):
    """The user's own error."""


def make(name: str, norm: str = "inside", **fields: Any) -> Any:
    """Adapt a model with a buffer of its own and block paths; ``layer`` where it is not the same as ``in``."""
    family = FAMILIES[name]
    base = family()
    base.register_buffer("running", torch.zeros(2))
    kinds = [*KINDS, "layer"] if family.post_norm else list(KINDS)
    options = {"mode": "dynamic", "budget": 0.5, "lora_dropout": 0.2, "shortcut_dropout": 0.2, **fields}
    model = adapted(base, target_modules=list(family.targets), shortcuts=kinds, shortcut_norm=norm, **options)
    fill_(model)
    return model


def batches(count: int = 3) -> list[Batch]:
    return [{"input_ids": tokens(seed=seed)} for seed in range(count)]


def loss_of(model: Any, batch: Batch) -> Tensor:
    return model(**batch).logits.float().pow(2).mean()


@contextmanager
def no_activation_kept() -> Iterator[None]:
    """See to it that no tensor with a graph that is made inside outlives the block."""
    gc.freeze()  # what was there before is no concern, and not looked through
    try:
        yield
        gc.collect()
        tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]  # asking others may warn
        assert [tensor.shape for tensor in tensors if tensor.grad_fn is not None] == []
    finally:
        gc.unfreeze()


def wiring_of(model: Any) -> Wiring:
    wiring: Wiring = model.get_base_model().rankwise_paths.wiring
    return wiring


def held(model: Any) -> list[str]:
    """Return what the hooks of the model's blocks hold."""
    wiring = wiring_of(model)
    found = [name for taps in wiring.taps for name in (*taps.flow.held, *taps.flow.kept)]
    crossing = ["crossing"] if wiring.crossing.left else []
    return [*found, *crossing, *map(str, wiring.sources.held)]


def break_inside_(model: Any) -> Any:
    """Make the second block's feed-forward raise, while the block's hooks hold what its paths will read."""

    def fail(module: nn.Module, args: Any) -> None:
        raise Broken

    name = "mlp" if model.config.model_type == "llama" else "output" if model.config.model_type == "bert" else "fc2"
    return wiring_of(model).taps[1].block.get_submodule(name).register_forward_pre_hook(fail)


@pytest.mark.parametrize("fails", ["nowhere", "in the loss", "in a block"])
@pytest.mark.parametrize(("proxy", "mode"), [("grad_norm", "train"), ("snip", "eval"), ("synflow", "eval")])
@pytest.mark.parametrize(("name", "norm"), VARIANTS)
def test_nothing_is_left_behind(name: str, norm: str, proxy: str, mode: str, fails: str) -> None:
    model = make(name, norm)
    loss_of(model, batches()[0]).backward()  # gradients of a step under way
    model.train()
    wiring_of(model).taps[0].block.eval()

    def loss_that_touches_everything(model: Any, batch: Batch) -> Tensor:
        torch.rand(3), random.random(), np.random.random()  # noqa: NPY002
        model.get_base_model().running += 1
        loss = loss_of(model, batch)
        if fails == "in the loss":
            raise Broken
        return loss

    def data() -> Iterator[Batch]:
        for batch in batches():
            torch.rand(1)
            yield batch

    handle = break_inside_(model) if fails == "in a block" else None
    before = snapshot(model)
    options: dict[str, Any] = {"proxy": proxy, "mode": mode, "synflow_loss": "loss"}
    with no_activation_kept(), nullcontext() if fails == "nowhere" else pytest.raises(Broken):
        rankwise.score_paths(model, data(), compute_loss=loss_that_touches_everything, **options)
    assert_same(before, snapshot(model))
    assert held(model) == []
    if handle is not None:  # and the next pass is as if nothing had been
        handle.remove()
        assert rankwise.score_paths(model, batches(), compute_loss=loss_of, proxy=proxy, seed=1) == pytest.approx(
            rankwise.score_paths(make(name, norm), batches(), compute_loss=loss_of, proxy=proxy, seed=1), rel=1e-12
        )


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(("name", "norm"), VARIANTS)
def test_a_search_by_probe_leaves_a_step_as_it_would_have_been(name: str, norm: str, fails: bool) -> None:
    """Gradients after a probe are those of a model that never had one."""
    plain = make(name, norm, mode="off")
    loss_of(plain, batches()[0]).backward()
    model = make(name, norm, mode="off", scoring="probe")
    allocator = rankwise.Allocator(model, batches=batches(), compute_loss=broken_loss if fails else loss_of)
    if fails:
        with pytest.raises(Broken):
            allocator.search()
        assert rankwise.history(model) == []
    else:
        rankwise.score_paths(model, batches(), compute_loss=loss_of)
    allocator.close()
    loss_of(model, batches()[0]).backward()
    gradients = {key: p.grad for key, p in plain.named_parameters() if p.grad is not None}
    assert len(gradients) == 2 * len(rankwise.named_paths(plain))
    assert_same(gradients, {key: p.grad for key, p in model.named_parameters() if p.grad is not None})


def broken_loss(model: Any, batch: Batch) -> Tensor:
    loss_of(model, batch)
    raise Broken


def forwards(model: Any) -> list[int]:
    """Count the forward passes of the model from now on, in a list of one number."""
    count = [0]

    def add(module: nn.Module, args: Any) -> None:
        count[0] += 1

    model.get_base_model().register_forward_pre_hook(add)
    return count


@pytest.mark.parametrize(("proxy", "passes"), [("grad_norm", 3), ("snip", 3), ("synflow", 1), ("constant", 0)])
@pytest.mark.parametrize(("name", "norm"), VARIANTS)
def test_one_pass_scores_all_kinds(name: str, norm: str, proxy: str, passes: int) -> None:
    model = make(name, norm)
    count = forwards(model)
    scores = rankwise.score_paths(model, batches(), compute_loss=loss_of, proxy=proxy)
    assert count == [passes]
    assert scores.keys() == rankwise.named_paths(model).keys()
    assert {"res1", "res2", "in", "cut"} < {key.rpartition(".")[2] for key in scores}


@pytest.mark.parametrize(("name", "norm"), VARIANTS)
def test_online_takes_no_pass_of_its_own(name: str, norm: str) -> None:
    model = make(name, norm, search_every=2, score_batches=2)
    count = forwards(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    model.train()
    for batch in batches(6):
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert held(model) == []
    assert count == [6]
    records = rankwise.history(model)
    assert [record["how"] for record in records] == ["online"] * 3
    assert all(record["scores"].keys() == rankwise.named_paths(model).keys() for record in records)
    rankwise.detach(model)
