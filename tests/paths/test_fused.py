"""The one function of a path against PEFT's formula: values, gradients, where it applies and where it does not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from tests.models import adapted, class_batches, fill_, keep_only_, tiny_bert
from tests.shortcuts import FIVE, batches, checkpointed, made
from torch import Tensor, nn

import rankwise
from rankwise.paths.fused import LowRankSum, plain_paths
from rankwise.paths.path_set import path_set
from rankwise.rules.records import searches
from rankwise.scores.probe import score_paths
from rankwise.scores.recorder import StatisticRecorder
from rankwise.scores.statistics import SketchedGradient, Statistic, WeightGradient

WIDE = torch.float64
QUERY: dict[str, Any] = {"task_type": "SEQ_CLS", "target_modules": ["query"]}
STILL: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def drawn(*shape: int, seed: int, dtype: torch.dtype = WIDE) -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return made.requires_grad_()


def parts(r: int, dtype: torch.dtype = WIDE) -> tuple[Tensor, ...]:
    """x, A, B, a base, W and a bias of two rows of three tokens, five wide and four out."""
    shapes = ((2, 3, 5), (r, 5), (4, r), (2, 3, 4), (4, 5), (4,))
    return tuple(drawn(*shape, seed=number, dtype=dtype) for number, shape in enumerate(shapes))


def over_a_base(x: Tensor, a: Tensor, b: Tensor, base: Tensor) -> Tensor:
    y: Tensor = LowRankSum.apply(x, a, b, 1.5, x.dtype, base, None, None)
    return y


def over_a_weight(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda x, a, b: LowRankSum.apply(x, a, b, 1.5, x.dtype, None, weight.detach(), bias)


@pytest.mark.parametrize("r", [1, 2, 3])
def test_its_values_are_those_of_the_formula_token_by_token(r: int) -> None:
    x, a, b, base, weight, bias = (tensor.detach() for tensor in parts(r))
    added = torch.stack([torch.stack([1.5 * (b @ (a @ token)) for token in row]) for row in x])
    torch.testing.assert_close(over_a_base(x, a, b, base), base + added)
    torch.testing.assert_close(over_a_weight(weight, bias)(x, a, b), F.linear(x, weight, bias) + added)
    torch.testing.assert_close(over_a_weight(weight, None)(x, a, b), F.linear(x, weight) + added)


@pytest.mark.parametrize("r", [1, 2])
def test_its_gradients_and_theirs_are_those_of_finite_differences(r: int) -> None:
    x, a, b, base, weight, bias = parts(r)
    for function, inputs in (
        (over_a_base, (x, a, b, base)),
        (over_a_weight(weight.detach(), bias.detach()), (x, a, b)),
    ):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("wanted", range(4))
def test_it_computes_the_gradients_that_are_wanted(wanted: int) -> None:
    inputs = [tensor.detach() for tensor in parts(2)[:4]]
    inputs[wanted].requires_grad_()
    over_a_base(*inputs).sum().backward()
    assert [tensor.grad is not None for tensor in inputs] == [number == wanted for number in range(4)]


def nodes(loss: Tensor) -> int:
    """How many of its nodes a graph has."""
    seen, todo = set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [before for before, _ in node.next_functions]
    return sum(type(node).__name__ == "LowRankSumBackward" for node in seen)


def step(model: nn.Module, batch: dict[str, Tensor], *, fused: bool = True) -> tuple[int, Tensor, dict[str, Tensor]]:
    """Return the number of nodes, the loss and the gradients of one training step."""
    model.zero_grad()
    with torch.random.fork_rng(devices=[]), nullcontext() if fused else plain_paths():
        torch.manual_seed(5)
        loss = model(**batch).loss
        count = nodes(loss)
        loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return count, loss.detach(), found


def assert_same_step(model: nn.Module, batch: dict[str, Tensor], count: int | None = None, rel: float = 1e-10) -> None:
    """The step is the same with and without; ``count`` nodes were made with."""
    fused, loss, gradients = step(model, batch)
    none, wanted_loss, wanted = step(model, batch, fused=False)
    assert none == 0
    assert fused > 0 if count is None else fused == count
    torch.testing.assert_close(loss, wanted_loss, rtol=rel, atol=rel)
    assert list(gradients) == list(wanted)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=rel, atol=rel, msg=lambda m: f"{name}: {m}")  # noqa: B023


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FIVE)
def test_a_model_with_every_kind_of_path_trains_the_same(family: str, checkpointing: bool) -> None:
    model = made(family, target_modules="all-linear").double().train()
    if checkpointing:
        model = checkpointed(model)
    (batch,) = batches(family)
    assert_same_step(model, batch)


def test_dropout_draws_what_it_drew() -> None:
    model = made("bert", lora_dropout=0.3, shortcut_dropout=0.2).double().train()
    (batch,) = batches("bert")
    assert_same_step(model, batch, len(path_set(model).enabled))


def test_what_is_off_or_frozen_is_as_it_was() -> None:
    model = adapted(tiny_bert(3), task_type="SEQ_CLS", target_modules=["query", "value"], on_disable="freeze").double()
    fill_(model)
    keep_only_(model, "layers.1.query", "layers.2.value")
    frozen = rankwise.named_paths(model)["layers.1.value"]
    frozen.set_(enabled=False, contributing=True)
    (batch,) = class_batches(1)
    assert_same_step(model.train(), batch)
    assert frozen.lora_A.grad is None


def test_under_autocast_it_is_no_further_from_the_truth_than_the_formula() -> None:
    """PEFT's sum rounds four times to bfloat16 where this one rounds twice."""
    model = made("bert", tiny_bert(**STILL), target_modules="all-linear").train()
    (batch,) = batches("bert")
    with torch.autocast("cpu", torch.bfloat16):
        count, loss, near = step(model, batch)
        _, other_loss, far = step(model, batch, fused=False)
    _, truth_loss, truth = step(model.double(), batch)
    assert count > 0
    assert near.keys() == far.keys() == truth.keys()

    def off(found: dict[str, Tensor]) -> float:
        return sum(float((found[name].double() - truth[name]).norm() / truth[name].norm()) for name in truth)

    assert all(gradient.dtype == torch.float32 for gradient in near.values())
    assert off(near) < 1.1 * off(far)
    assert abs(loss - truth_loss) < 2 * abs(other_loss - truth_loss) + 0.01


def test_a_compiled_model_is_one_graph_without_it() -> None:
    model = adapted(tiny_bert(**STILL), **QUERY)
    fill_(model)
    base: Any = model.train().get_base_model()
    base.config.problem_type = "single_label_classification"
    (batch,) = class_batches(1)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(**batch).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    _, _, wanted = step(model, batch)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6)
    torch._dynamo.reset()


def test_torch_func_goes_through_the_formula() -> None:
    model = adapted(tiny_bert(**STILL), **QUERY).double().train()
    fill_(model)
    (batch,) = class_batches(1)
    _, _, wanted = step(model, batch)
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    loss_of = lambda given: torch.func.functional_call(model, given, kwargs=batch).loss  # noqa: E731
    found = torch.func.grad(loss_of)(trained)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient)


@pytest.mark.parametrize("statistic", [WeightGradient(), SketchedGradient(4, seed=0)], ids=["exact", "sketched"])
def test_a_window_sees_the_same(statistic: Statistic) -> None:
    """Exact and sketched sums of the paths' gradients, over paths that are on and paths that are off."""
    model = made("bert", tiny_bert(2, **STILL)).double().train()
    keep_only_(model, *list(rankwise.named_paths(model))[::2])
    rankwise.detach(model)  # what keeps idle paths still closes windows it did not open
    (batch,) = batches("bert")
    sums = []
    for context in (nullcontext(), plain_paths()):
        path_set(model).session.recorder = recorder = StatisticRecorder(statistic)
        with context:
            model(**batch).loss.backward()
        recorder.fold()
        sums.append(recorder.means())
    path_set(model).session.recorder = None
    assert sums[0].keys() == rankwise.named_paths(model).keys()
    for name, (tensor,) in sums[0].items():
        torch.testing.assert_close(tensor, sums[1][name][0], rtol=1e-10, atol=1e-10)


def test_searches_choose_the_same() -> None:
    """Twelve steps of training with four searches, in float64 so that rounding can't tip a choice."""
    chosen = []
    for context in (nullcontext(), plain_paths()):
        config = rankwise.HeteroLoraConfig(
            task_type="SEQ_CLS", r=2, target_modules=["query", "value"], shortcuts=["res1", "in"], mode="dynamic",
            search_every=3,
            score_batches=2, budget=0.5, total_steps=12,
        )  # fmt: skip
        model = get_peft_model(tiny_bert(3, **STILL), config).double().train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
        with context:
            for batch in class_batches(12):
                model(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        chosen.append([(record.switched_on, record.switched_off) for record in searches(rankwise.history(model))])
        rankwise.detach(model)
    assert chosen[0] == chosen[1]
    assert any(on for on, _ in chosen[0])


def test_training_scores_are_the_same() -> None:
    model = made("bert", tiny_bert(2, **STILL)).double()
    found = score_paths(model, batches("bert", 2), mode="train")
    with plain_paths():
        wanted = score_paths(model, batches("bert", 2), mode="train")
    assert found == pytest.approx(wanted, rel=1e-10)
