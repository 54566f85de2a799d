"""What a joint choice is made of, against gradients of W0 by autograd, example by example, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.models import Batch, adapted, class_batches, tiny_bert
from tests.processes import in_two_processes
from tests.scores.test_curvature import QUIET
from torch import Tensor, nn

import rankwise
from rankwise.paths.path_set import path_set
from rankwise.scores.curvature import drawn_loss
from rankwise.scores.likelihood import Drawn, draw
from rankwise.scores.probe import model_loss, untouched
from rankwise.scores.signals import Signal, collect_signals, count_parts

K = 2
CPU = torch.device("cpu")


def model_of(blocks: int = 1) -> Any:
    """A float64 classifier with a path of rank 1 on every query and value, which as yet add nothing."""
    return adapted(tiny_bert(blocks, **QUIET), task_type=None, target_modules=["query", "value"], r=1).double()


def collect(
    model: Any, batches: Sequence[Batch], loss_of: Any = model_loss, draw_of: Any = None, **fields: Any
) -> tuple[dict[str, Signal], float]:
    options: dict[str, Any] = {
        "components": K,
        "matched": "sgd",
        "reduction": "auto",
        "halves": False,
        "cross_validate": False,
        "seed": 0,
        **fields,
    }
    parts = 2 if options["halves"] or options["cross_validate"] else 1
    options = {"counts": count_parts(batches, parts, CPU), **options}
    draws = draw_of or drawn_loss(None, torch.enable_grad, 0)
    with untouched(model), torch.enable_grad():
        return collect_signals(model.eval(), path_set(model), batches, loss_of, draws, **options)


class Oracle:
    """Gradients of the losses of batches, and of each example's loss under drawn labels, with respect to every W0."""

    def __init__(self, model: Any, batches: Sequence[Batch]) -> None:
        self.model = model
        weights = [path.host.get_base_layer().weight.requires_grad_() for path in rankwise.named_paths(model).values()]
        self.mean = [torch.autograd.grad(model(**batch).loss, weights) for batch in batches]
        self.examples = [
            [
                torch.autograd.grad(draw(model, {k: v[e : e + 1] for k, v in batch.items()}, 0).losses.sum(), weights)
                for e in range(len(batch["labels"]))
            ]
            for batch in batches
        ]

    def gradients(self, part: slice) -> list[Tensor]:
        """Return the mean gradient of some batches."""
        some = self.mean[part]
        return [torch.stack(each).mean(0) for each in zip(*some, strict=True)]

    def curvature(self, part: slice, directions: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the sum over the examples of some batches of ``a_e(D_j) a_e(D_l)``."""
        found = []
        for batch in self.examples[part]:
            for example in batch:
                values = [
                    u[:, j] @ gradient @ v[:, j]
                    for gradient, (u, v) in zip(example, directions, strict=True)
                    for j in range(K)
                ]
                found.append(torch.stack(values))
        rows = torch.stack(found)
        return rows.T @ rows


def leading(gradients: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    found = []
    for gradient in gradients:
        u, _, vt = torch.linalg.svd(gradient, full_matrices=False)
        found.append((u[:, :K], vt[:K].T))
    return found


def slopes(gradients: list[Tensor], directions: list[tuple[Tensor, Tensor]]) -> list[float]:
    return [
        float(u[:, j] @ gradient @ v[:, j])
        for gradient, (u, v) in zip(gradients, directions, strict=True)
        for j in range(K)
    ]


def assert_signal(signal: Signal, oracle: Oracle, directions: slice, of_slopes: slice, examples: slice) -> None:
    along = leading(oracle.gradients(directions))
    expected = slopes(oracle.gradients(of_slopes), along)
    if directions != of_slopes:
        expected = [max(value, 0.0) for value in expected]
    assert signal.slopes.tolist() == pytest.approx(expected, rel=1e-7, abs=1e-12)
    np.testing.assert_allclose(
        signal.examples.T @ signal.examples, oracle.curvature(examples, along).numpy(), rtol=1e-6, atol=1e-12
    )
    assert signal.terms == sum(len(batch) for batch in oracle.examples[examples])
    assert signal.owners == [owner for owner in range(len(along)) for _ in range(K)]


ALL, FIRST, SECOND = slice(None), slice(0, None, 2), slice(1, None, 2)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"all": (ALL, ALL, ALL)}),
        (
            {"halves": True},
            {"all": (ALL, ALL, ALL), "first": (FIRST, FIRST, FIRST), "second": (SECOND, SECOND, SECOND)},
        ),
        ({"cross_validate": True}, {"all": (FIRST, SECOND, SECOND)}),
        (
            {"cross_validate": True, "halves": True},
            {"all": (FIRST, SECOND, SECOND), "first": (FIRST, SECOND, SECOND), "second": (SECOND, FIRST, FIRST)},
        ),
    ],
    ids=["plain", "halves", "crossed", "both"],
)
def test_slopes_and_examples_are_those_of_autograd(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """Of five batches, so that one half has a batch more than the other."""
    model, batches = model_of(), class_batches(5, 3)
    found, loss = collect(model, batches, **fields)
    oracle = Oracle(model, batches)
    assert list(found) == list(expected)
    for choice, parts in expected.items():
        assert_signal(found[choice], oracle, *parts)
    assert loss == pytest.approx(sum(float(model(**batch).loss.detach()) for batch in batches) / 5)


def test_directions_matched_to_adam_have_larger_slopes() -> None:
    """``sigma_j norm1(u_j)`` and not ``sigma_j``."""
    model, batches = model_of(), class_batches(3)
    found, _ = collect(model, batches, matched="adam")
    gradients = Oracle(model, batches).gradients(ALL)
    expected = [
        float(torch.linalg.svdvals(gradient)[j] * u[:, j].abs().sum())
        for gradient, (u, _) in zip(gradients, leading(gradients), strict=True)
        for j in range(K)
    ]
    assert found["all"].slopes.tolist() == pytest.approx(expected, rel=1e-7)


def summed(model: nn.Module, batch: Batch) -> Tensor:
    return model_loss(model, batch) * len(batch["labels"])


def test_a_sum_over_terms_is_told_from_their_mean_and_divided_where_that_is_said() -> None:
    model, batches = model_of(), class_batches(3)
    plain, loss = collect(model, batches)
    with pytest.raises(ValueError, match=r"and the mean over its terms \(about 4 a batch\) is .*say reduction='sum'"):
        collect(model, batches, summed)
    divided, of_terms = collect(model, batches, summed, reduction="sum")
    assert of_terms == pytest.approx(loss, rel=1e-9)
    assert divided["all"].slopes.tolist() == pytest.approx(plain["all"].slopes.tolist(), rel=1e-9)
    believed, _ = collect(model, batches, summed, reduction="mean")
    assert believed["all"].slopes.tolist() == pytest.approx([4 * one for one in plain["all"].slopes], rel=1e-9)


@pytest.mark.parametrize(("factor", "passes"), [(1.009, True), (1.012, False), (0.992, True), (0.985, False)])
def test_the_mean_is_recognised_to_one_hundredth(factor: float, passes: bool) -> None:
    def nearly(model: nn.Module, batch: Batch) -> Tensor:
        return factor * model_loss(model, batch)

    if passes:
        collect(model_of(), class_batches(3), nearly)
    else:
        with pytest.raises(ValueError, match="say reduction='mean' to have its gradient as it is"):
            collect(model_of(), class_batches(3), nearly)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, r"^6 examples can't tell 7 components of a path apart: .*, or components=6$"),
        ({"halves": True}, r"^2 examples in a half of the batches can't tell 7 components .*, or components=2$"),
        ({"cross_validate": True}, r"^2 examples in a half of the batches can't tell 7 .*, or components=2$"),
    ],
)
def test_fewer_examples_than_components_are_refused_with_a_number_that_works(
    fields: dict[str, Any], words: str
) -> None:
    """Three batches of two examples: the second half has one batch."""
    batches = class_batches(3, 2)
    with pytest.raises(ValueError, match=words):
        collect(model_of(), batches, components=7, **fields)
    collect(model_of(), batches, components=6 if not fields else 2, **fields)


def refused(model: nn.Module, batch: Batch) -> Tensor:
    raise AssertionError("a pass was made")


def test_too_few_examples_are_refused_before_any_pass_where_the_batches_say_how_many_there_are() -> None:
    batches = class_batches(3, 2)
    with pytest.raises(ValueError, match="6 examples can't tell 7 components"):
        collect(model_of(), batches, refused, components=7)
    unknown = count_parts(batches, 1, CPU, rows=False)
    assert (unknown.batches, unknown.examples) == ([3], None)
    with pytest.raises(ValueError, match="6 examples can't tell 7 components"):
        collect(model_of(), batches, components=7, counts=unknown)


def test_what_a_part_has_is_counted_by_the_rows_of_its_labels() -> None:
    counts = count_parts([*class_batches(2, 4), *class_batches(1, 3)], 2, CPU)
    assert (counts.batches, counts.examples) == ([2, 1], [7, 4])
    assert count_parts([{"input_ids": torch.zeros(2, 3)}], 1, CPU).examples is None
    assert count_parts([(torch.zeros(2, 3), None)], 1, CPU).examples is None


def counted(share: slice) -> dict[str, Any]:
    """What two processes find together; the second has one batch of two rows where the first has two of them."""
    second = share.start > 0
    batches = [{key: value[share] for key, value in batch.items()} for batch in class_batches(3 - second)]
    counts = count_parts(batches, 2, CPU)
    told = []
    for own_loss in (summed if second else model_loss, None):
        fields: dict[str, Any] = {"halves": True} if own_loss else {"halves": True, "components": 5}
        try:
            collect(model_of(), batches, own_loss or model_loss, **fields)
        except ValueError as error:
            told.append(str(error))
    signals, loss = collect(model_of(), batches, halves=True)
    return {
        "batches": counts.batches,
        "examples": counts.examples,
        "told": told,
        "loss": loss,
        "slopes": {choice: signal.slopes.tolist() for choice, signal in signals.items()},
        "gram": {choice: (signal.examples.T @ signal.examples).tolist() for choice, signal in signals.items()},
    }


@pytest.mark.distributed
def test_two_processes_refuse_together_and_find_the_same_of_uneven_batches(tmp_path: Path) -> None:
    """The loss of one of them is a sum; were it alone to raise, the other would wait for it."""
    first, second = in_two_processes(counted, tmp_path)
    assert first == second
    assert (first["batches"], first["examples"]) == ([3, 2], [6, 4])
    reduction, examples = first["told"]
    assert "say reduction='sum'" in reduction
    assert "4 examples in a half of the batches can't tell 5 components" in examples
    data = class_batches(3)
    shares = [{k: v[:2] for k, v in b.items()} for b in data] + [{k: v[2:] for k, v in b.items()} for b in data[:2]]
    # Parts by process: batches 0 and 2 of the first and 0 of the second are the first half's.
    model = model_of()
    of_half = [shares[0], shares[2], shares[3]], [shares[1], shares[4]]
    for choice, some in (("first", of_half[0]), ("second", of_half[1]), ("all", of_half[0] + of_half[1])):
        alone, _ = collect(model, some)
        assert first["slopes"][choice] == pytest.approx(alone["all"].slopes.tolist(), rel=1e-6)
        np.testing.assert_allclose(
            np.array(first["gram"][choice]), alone["all"].examples.T @ alone["all"].examples, rtol=1e-5, atol=1e-9
        )
    assert first["loss"] == pytest.approx(sum(float(model(**batch).loss.detach()) for batch in shares) / 5)


def test_a_path_that_the_loss_does_not_see_offers_nothing() -> None:
    """A loss of the first block's output: what lies in the second has no gradient."""

    def hidden(model: nn.Module, batch: Batch) -> Tensor:
        found: Tensor = model(input_ids=batch["input_ids"], output_hidden_states=True).hidden_states[1]
        return found

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return hidden(model, batch).square().mean()

    def drawn(model: nn.Module, batch: Batch, number: int) -> Drawn:
        found = hidden(model, batch)
        noise = torch.randn(found.shape, generator=torch.Generator().manual_seed(number), dtype=found.dtype)
        return Drawn((found * noise).sum((1, 2)), len(found))

    model = model_of(2)
    found, _ = collect(model, class_batches(3), loss, drawn, halves=True)
    names = list(rankwise.named_paths(model))
    for signal in found.values():
        assert {names[owner] for owner in signal.owners} == {"layers.0.query", "layers.0.value"}
        assert signal.examples.shape[1] == len(signal.slopes) == 2 * K
