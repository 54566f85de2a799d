"""The choice of ranks: the values it takes, the joint choice behind it, and what its halves say."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.models import Batch, class_batches, text_batches, tiny_bert, tiny_llama, tokens
from tests.planning.test_ranks import QUIET, plan_of
from torch import Tensor, nn

import rankwise
from rankwise.planning.choosing import _Chooser, _components, _little, overlap_of
from rankwise.rules.joint import choose_jointly
from rankwise.scores.probe import model_loss
from rankwise.scores.signals import Counts, Signal


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(1, 8), (4 * 30, 8), (4 * 30 + 1, 10), (32 * 30, 64), (32 * 30 + 1, 64), (10**9, 64)],
)
def test_a_path_offers_twice_the_uniform_rank_within_limits(budget: int, expected: int) -> None:
    """One rank of everything costs 30."""
    assert _components(budget, {"a": 10, "b": 20}, None, Counts([1, 1], [1, 1])) == expected


def test_the_plan_is_the_joint_choice_of_what_the_passes_found(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def spying(lin: Any, curvature: Any, costs: Any, budget: int, **fields: Any) -> Any:
        seen.append((lin, costs, budget, fields, choose_jointly(lin, curvature, costs, budget, **fields)))
        return seen[-1][-1]

    monkeypatch.setattr("rankwise.planning.choosing.choose_jointly", spying)
    plan = plan_of(halves=False)
    ((lin, costs, budget, fields, picks),) = seen
    names = list(plan.ranks)
    assert [pick.path for pick in plan.picks] == [names[fields["owners"][j]] for j in picks.order]
    assert budget == plan.budget
    assert costs == [plan.costs[names[owner]] for owner in fields["owners"]]
    assert plan.curve()[-1][0] == plan.spent
    assert plan.curve()[-1][1] == pytest.approx(plan.gain)
    assert plan.parameters_for(1.0) <= plan.spent
    half = plan.parameters_for(0.5)
    assert next(gain for cost, gain in plan.curve() if cost == half) >= plan.gain / 2
    assert len(lin) == sum(min(8, *sizes) for sizes in shapes(plan))


def shapes(plan: rankwise.RankPlan) -> list[tuple[int, int]]:
    model: Any = tiny_llama()
    return [tuple(model.get_submodule(module).weight.shape) for module in plan.modules.values()]


def test_breadth_is_the_uniform_plan_exactly() -> None:
    whole = sum(plan_of().costs.values())
    assert set(plan_of(budget=2 * whole, breadth=1.0).ranks.values()) == {2}
    assert len(set(plan_of(budget=2 * whole).ranks.values())) > 1


def test_halves_that_disagree_give_the_uniform_plan_and_say_so() -> None:
    whole = sum(plan_of().costs.values())
    with pytest.warns(UserWarning, match="the data can't tell the paths apart"):
        plan = plan_of(budget=whole, least_overlap=1.0)
    assert plan.overlap is not None
    assert plan.overlap < 1.0
    assert set(plan.ranks.values()) == {1}
    assert plan.breadth == 1.0
    assert len(plan.warnings) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        off = plan_of(budget=whole, least_overlap=1.0, halves=False)
    assert off.overlap is None
    assert off.kept is None
    assert off.breadth == 0.5


def test_halves_of_the_same_batches_agree_wholly() -> None:
    twice = [batch for batch in text_batches(3, 8) for _ in range(2)]
    plan = plan_of(batches=twice)
    assert plan.overlap == 1.0
    assert plan.kept == pytest.approx(1.0)


def test_a_gain_that_is_small_beside_the_loss_is_a_warning() -> None:
    """MRPC's plan had 0.065 of a loss of 0.649, TREC's 0.552 of 1.6."""
    (note,) = _little(0.065, 0.649, 0.0)
    assert note.startswith("the loss is predicted to fall by 0.065, 10% of 0.649: at this budget the score sees little")
    assert "Tune the plan against uniform LoRA, or give breadth=1.0 for the uniform plan" in note
    assert len(_little(0.149, 1.0, 0.5)) == 1
    for gain, loss, breadth in [
        (0.552, 1.6, 0.0),
        (0.15, 1.0, 0.0),
        (0.0, 1.0, 1.0),
        (0.1, math.nan, 0.0),
        (0.1, -1, 0),
    ]:
        assert _little(gain, loss, breadth) == ()


@pytest.mark.parametrize("halves", [True, False])
def test_a_plan_has_that_warning_with_halves_and_without(halves: bool) -> None:
    small = plan_of(budget=24, halves=halves)
    assert small.gain < 0.15 * small.loss
    assert [note.partition(" by ")[0] for note in small.warnings if "of" in note][-1] == "the loss is predicted to fall"
    uniform = plan_of(budget=sum(small.costs.values()), halves=halves, breadth=1.0)
    assert uniform.gain < 0.15 * uniform.loss
    assert uniform.warnings == ()


def test_overlap_is_the_shared_share_of_the_cost() -> None:
    costs = {"a": 10, "b": 30}
    assert overlap_of({"a": 3, "b": 0}, {"a": 0, "b": 1}, costs) == 0.0
    assert overlap_of({"a": 1, "b": 1}, {"a": 4, "b": 0}, costs) == pytest.approx(10 / 40)
    assert overlap_of({"a": 2, "b": 1}, {"a": 2, "b": 1}, costs) == 1.0


def test_a_plan_says_what_it_leaves_unspent_and_why() -> None:
    plan = plan_of(budget=430)
    assert plan.unspent == 430 - plan.spent
    assert bool(plan.unspent) == bool(plan.unspent_because)
    if plan.unspent:
        assert plan.unspent < min(plan.costs.values())
    everything = plan_of(budget=10**6, components=2)
    assert set(everything.ranks.values()) == {2}
    assert "all 28 components" in everything.unspent_because


def test_two_choices_of_nothing_agree() -> None:
    assert overlap_of({"a": 0}, {"a": 0}, {"a": 10}) == 1.0
    assert overlap_of({}, {}, {}) == 1.0


def apart(*slopes: float) -> Signal:
    """Two components of each of two paths, each seen by an example of its own, so that gains add up: ``H = I``."""
    return Signal(np.array(slopes), 2 * np.eye(4), terms=4, owners=[0, 0, 1, 1])


def test_agreement_is_what_a_half_keeps_of_its_gain_with_the_others_ranks() -> None:
    """Ranks (2, 0) and (1, 1) at a damping of 1: a component's gain is ``lin^2 / 4``."""
    chooser = _Chooser({"a": 10, "b": 10}, budget=20, damping=1.0)
    first, second = apart(4, 3, 2, 1), apart(4, 1, 3, 2)
    assert chooser.ranks(first, chooser.choose(first, 0.0)) == {"a": 2, "b": 0}
    assert chooser.ranks(second, chooser.choose(second, 0.0)) == {"a": 1, "b": 1}
    overlap, kept = chooser.agreement(first, second, 0.0)
    assert overlap == 10 / 20
    of_first = (4**2 + 2**2) / (4**2 + 3**2)  # rank 1 of a and of b
    of_second = (4**2 + 1**2) / (4**2 + 3**2)  # rank 2 of a
    assert kept == pytest.approx((of_first + of_second) / 2)


def test_a_half_without_any_gain_keeps_none() -> None:
    chooser = _Chooser({"a": 10, "b": 10}, budget=20, damping=1.0)
    assert chooser.agreement(apart(0, 0, 0, 0), apart(4, 3, 2, 1), 0.0)[1] == pytest.approx(0.5)


def test_a_budget_below_one_rank_of_anything_is_refused() -> None:
    words = (
        r"budget=23 is below the cheapest component: one rank of \S+ costs 24 parameters, one rank of everything \d+"
    )
    with pytest.raises(ValueError, match=words):
        plan_of(budget=23)
    assert plan_of(budget=24).spent == 24


@pytest.mark.parametrize(("halves", "cross"), [(True, False), (False, False), (False, True), (True, True)])
def test_the_passes_of_a_plan_are_those_that_were_made(halves: bool, cross: bool) -> None:
    """Of five batches, an uneven number; steps of the head count too."""
    calls: list[str] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        calls.append("loss")
        return model_loss(model, batch)

    def drawn(model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, int]:
        calls.append("drawn")
        labels = torch.randint(0, 2, (len(batch["labels"]),), generator=generator)
        found = nn.functional.cross_entropy(model(**batch).logits, labels, reduction="none")
        return found, len(found)

    options: dict[str, Any] = {"halves": halves, "cross_validate": cross, "components": 2, "head_warmup": 3}
    plan = plan_of(tiny_bert(1, **QUIET), class_batches(5), compute_loss=loss, draw_losses=drawn, budget=200, **options)
    assert plan.passes == len(calls)
    assert plan.loss > 0


PROBLEMS = [(kind, outputs) for kind in ("regression", "multi_label_classification") for outputs in (1, 3)]


def problem(kind: str, outputs: int) -> tuple[Any, list[Batch]]:
    """A float64 model of one block and batches with labels for it."""
    model = tiny_bert(1, num_labels=outputs, problem_type=kind, **QUIET).double()
    generator = torch.Generator().manual_seed(0)
    made = []
    for seed in range(24):
        drawn = torch.randn(32, outputs, generator=generator, dtype=torch.float64)
        labels = {"regression": drawn, "multi_label_classification": (drawn > 1).double()}.get(kind, drawn.argmax(1))
        made.append({"input_ids": tokens(32, seed=seed), "labels": labels})
    return model, made


def fall_along_a_step(model: Any, batches: list[Batch]) -> float:
    """``slope^2 / (2 curvature)`` of the model's own loss, by its Gauss-Newton matrix, along the largest direction."""
    weight = model.bert.pooler.dense.weight
    mean = torch.stack([torch.autograd.grad(model(**batch).loss, weight)[0] for batch in batches]).mean(0)
    left, _, right = torch.linalg.svd(mean)
    direction = torch.outer(left[:, 0], right[0])
    slope, found, step = float((mean * direction).sum()), [], 1e-4

    def moved(by: float, ids: Tensor) -> Tensor:
        with torch.no_grad():
            weight.add_(by * direction)
            logits: Tensor = model(input_ids=ids).logits
            weight.sub_(by * direction)
        return logits

    for batch in batches:
        change = (moved(step, batch["input_ids"]) - moved(-step, batch["input_ids"])) / (2 * step)
        start = moved(0.0, batch["input_ids"]).requires_grad_()

        def loss(logits: Tensor, labels: Tensor = batch["labels"]) -> Tensor:
            value: Tensor = model.loss_function(labels=labels, pooled_logits=logits, config=model.config)
            return value

        curved = torch.autograd.functional.hvp(loss, start, change)[1]
        found.append(float((curved * change).sum()))
    return slope**2 / (2 * sum(found) / len(found))


@pytest.mark.parametrize(("kind", "outputs"), [*PROBLEMS, ("single_label_classification", 3)])
def test_the_gain_is_in_units_of_the_models_own_loss(kind: str, outputs: int) -> None:
    """Drawn labels know the curvature to a few hundredths; the loss's factor was 1/2, 3/2 or 3."""
    model, batches = problem(kind, outputs)
    only: dict[str, Any] = {"target_modules": ["pooler.dense"], "components": 1, "directions": "sgd", "head_warmup": 0}
    plan = plan_of(model, batches, budget=32, damping=1e-9, halves=False, **only)
    assert plan.gain == pytest.approx(fall_along_a_step(model, batches), rel=0.15)
    assert plan.curve() == [(32, plan.gain)]


def test_the_unit_of_the_loss_changes_gains_and_no_choice() -> None:
    signal, costs = apart(3.0, 1.0, 2.0, 0.5), {"a": 1, "b": 1}
    chooser = _Chooser(costs, 3, 1.0)
    plain, twice = chooser.choose(signal, 0.0), chooser.choose(replace(signal, unit=2.0), 0.0)
    assert plain.order == twice.order
    assert twice.marginals == tuple(2 * gain for gain in plain.marginals)
