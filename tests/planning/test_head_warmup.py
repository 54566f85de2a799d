"""A head trained alone: by Adam, on nothing but the head, and put back unless it is kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import get_peft_model
from tests.families import FAMILIES
from tests.models import Batch, class_batches, tiny_bert, tiny_llama
from tests.planning.test_ranks import QUIET, plan_of
from tests.traces import assert_same, snapshot
from torch import Tensor, nn

import rankwise
from rankwise.planning.head_warmup import BETAS, EPSILON, MOST_STEPS, RATE, head_parameters_of, head_steps, warmed_head
from rankwise.scores.probe import model_loss


def names(model: nn.Module) -> set[str]:
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    return {own[id(parameter)] for parameter in head_parameters_of(model)}


def test_the_head_is_what_has_a_usual_name() -> None:
    assert names(tiny_bert()) == {"classifier.weight", "classifier.bias"}
    assert names(FAMILIES["roberta"]()) == {
        f"classifier.{part}.{kind}" for part in ("dense", "out_proj") for kind in ("weight", "bias")
    }
    assert names(tiny_llama()) == set()


def test_of_a_head_that_peft_copied_it_is_the_copy() -> None:
    model = get_peft_model(tiny_bert(), rankwise.HeteroLoraConfig(task_type="SEQ_CLS", r=2, mode="off"))
    found = names(model)
    assert len(found) == 2
    assert all("modules_to_save.default" in name for name in found)


@pytest.mark.parametrize(
    ("model", "batches", "asked", "expected"),
    [
        (tiny_bert(), 3, None, 6),
        (tiny_bert(), 51, None, MOST_STEPS),
        (tiny_bert(), 3, 0, 0),
        (tiny_bert(), 3, 250, 250),
        (tiny_llama(), 3, None, 0),  # no head
        (tiny_llama(), 3, 0, 0),
    ],
)
def test_how_many_steps(model: nn.Module, batches: int, asked: int | None, expected: int) -> None:
    assert head_steps(model, [{}] * batches, asked) == expected


@pytest.mark.parametrize("steps", [-1, 2.0, "3", True])
def test_a_number_of_steps_is_whole(steps: Any) -> None:
    with pytest.raises(ValueError, match=f"head_warmup={steps!r} must be a whole number of steps, or None"):
        head_steps(tiny_bert(), [{}], steps)


def test_steps_without_a_head_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"head_warmup=3 trains a head, and LlamaForCausalLM has none under a usual .*"
    ):
        head_steps(tiny_llama(), [{}], 3)


def by_torch(model: Any, batches: list[Batch], steps: int) -> list[Tensor]:
    """Train a copy's classifier with torch's own Adam, its other weights frozen."""
    twin = copy.deepcopy(model).eval()
    twin.requires_grad_(False)
    twin.classifier.requires_grad_(True)
    optimizer = torch.optim.Adam(twin.classifier.parameters(), lr=RATE, betas=BETAS, eps=EPSILON)
    for step in range(steps):
        optimizer.zero_grad()
        twin(**batches[step % len(batches)]).loss.backward()
        optimizer.step()
    return [parameter.detach() for parameter in twin.classifier.parameters()]


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_it_is_trained_by_adam_on_the_batches_in_turn(steps: int) -> None:
    model = tiny_bert(1).double().train()  # dropout is off while the head trains
    batches = class_batches(3)
    expected = by_torch(model, batches, steps)
    with warmed_head(model, batches, model_loss, steps, keep=False):
        for found, value in zip(model.classifier.parameters(), expected, strict=True):
            torch.testing.assert_close(found.detach(), value, rtol=1e-10, atol=1e-13)


class Broken(RuntimeError):
    """The user's own error."""


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("fails", ["training", "inside", "never"])
def test_nothing_else_changes_and_a_failure_puts_the_head_back(fails: str, keep: bool) -> None:
    model: Any = tiny_bert(1, **QUIET).train()
    model.bert.embeddings.requires_grad_(False)
    model.classifier.bias.requires_grad_(False)
    (batch,) = class_batches(1)
    model(**batch).loss.backward()
    before, head = snapshot(model), [p.detach().clone() for p in model.classifier.parameters()]
    calls: list[int] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        calls.append(torch.rand(1).numel())
        if fails == "training" and len(calls) == 3:
            raise Broken
        return model_loss(model, batch)

    def run() -> None:
        with warmed_head(model, [batch], loss, 4, keep=keep):
            trained = [p.detach().clone() for p in model.classifier.parameters()]
            assert not any(torch.equal(one, two) for one, two in zip(trained, head, strict=True))
            if fails == "inside":
                raise Broken

    if fails == "never":
        run()
    else:
        with pytest.raises(Broken):
            run()
    kept = [p.detach().clone() for p in model.classifier.parameters()]
    assert all(torch.equal(one, two) for one, two in zip(kept, head, strict=True)) == (fails != "never" or not keep)
    with torch.no_grad():
        for parameter, value in zip(model.classifier.parameters(), head, strict=True):
            parameter.copy_(value)
    assert_same(before, snapshot(model))


def test_no_steps_are_no_training_and_what_the_inside_makes_of_the_head_stays() -> None:
    model: Any = tiny_bert(1)

    def unasked(model: nn.Module, batch: Batch) -> Tensor:
        raise AssertionError("a pass was made")

    with warmed_head(model, class_batches(1), unasked, 0, keep=False), torch.no_grad():
        model.classifier.bias.fill_(3.0)
    assert model.classifier.bias.tolist() == [3.0, 3.0]


def test_the_head_is_trained_first_and_put_back_unless_it_is_kept() -> None:
    model: Any = tiny_bert(**QUIET)
    data = class_batches(6)
    before = model.classifier.weight.clone()
    untrained = plan_of(model, data, head_warmup=0)
    trained = plan_of(model, data, head_warmup=30)
    assert trained.loss < untrained.loss
    assert torch.equal(model.classifier.weight, before)
    assert plan_of(model, data).loss < untrained.loss  # the default
    body = model.bert.encoder.layer[0].output.dense.weight.clone()
    plan_of(model, data, head_warmup=30, keep_head=True)
    assert not torch.equal(model.classifier.weight, before)
    assert torch.equal(model.bert.encoder.layer[0].output.dense.weight, body)
    with pytest.raises(ValueError, match="LlamaForCausalLM has none under a usual name"):
        plan_of(head_warmup=3)


def test_a_part_of_the_head_that_the_loss_does_not_use_stays() -> None:
    model: Any = tiny_bert(1)
    model.score = nn.Linear(2, 2)
    before = copy.deepcopy(model.score.state_dict())
    used = model.classifier.weight.detach().clone()
    with warmed_head(model, class_batches(2), model_loss, 3, keep=True):
        pass
    assert_same(before, model.score.state_dict())
    assert not torch.equal(used, model.classifier.weight)


def test_a_loss_that_does_not_use_the_head_is_told() -> None:
    model: Any = tiny_bert(1)
    outside = torch.ones((), requires_grad=True)
    with (
        pytest.raises(ValueError, match=r"does not use the head.*head_warmup=0"),
        warmed_head(model, class_batches(1), lambda model, batch: outside * 2, 1, keep=False),
    ):
        pass


def test_a_head_in_half_precision_is_trained_as_one_in_float32() -> None:
    """Adam's epsilon is nothing in float16, and the squares of small gradients are nothing."""
    batches = class_batches(4)
    trained = []
    for dtype in (torch.float32, torch.float16):
        model: Any = tiny_bert()
        model.to(dtype)
        with warmed_head(model, batches, model_loss, 12, keep=True):
            pass
        trained.append(torch.cat([parameter.detach().float().flatten() for parameter in head_parameters_of(model)]))
    start = torch.cat([parameter.detach().flatten() for parameter in head_parameters_of(tiny_bert())])
    moved = [values - start for values in trained]
    assert torch.isfinite(trained[1]).all()
    assert float((moved[1] - moved[0]).norm() / moved[0].norm()) < 0.1
