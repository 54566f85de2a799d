"""A window: what steps add to it, what they don't, and that a checkpoint has all of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import adapted, tiny_bert
from tests.processes import in_two_processes
from torch import Tensor

import rankwise
from rankwise.paths.low_rank_path import LowRankPath
from rankwise.scores.recorder import StatisticRecorder
from rankwise.scores.statistics import FactorGradients, WeightGradient

CPU = torch.device("cpu")


def two_paths() -> tuple[LowRankPath, LowRankPath]:
    model = adapted(tiny_bert(1), task_type="SEQ_CLS", target_modules=["query", "value"])
    first, second = rankwise.named_paths(model).values()
    return first, second


def drawn(seed: int, tokens: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, g = (torch.randn(tokens, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    return x.to(dtype), g.to(dtype)


def seen(recorder: StatisticRecorder, path: LowRankPath, x: Tensor, g: Tensor) -> None:
    """Pass tokens by a path, as a forward and a backward pass do."""
    result = torch.zeros(len(x), 16, dtype=g.dtype, requires_grad=True)
    tapped = recorder.tap(path, x, result)
    assert torch.equal(tapped, result)
    (tapped * g).sum().backward()


def test_it_is_the_mean_over_steps_of_the_sum_over_their_micro_batches() -> None:
    path = two_paths()[0]
    recorder = StatisticRecorder(WeightGradient())
    expected = torch.zeros(16, 16, dtype=torch.float64)
    for step in range(3):
        for part in range(step + 1):
            x, g = drawn(10 * step + part)
            seen(recorder, path, x, g)
            expected += torch.einsum("no,ni->oi", g, x) / 3
        recorder.fold()
    assert recorder.steps == 3
    torch.testing.assert_close(recorder.means()[path.name][0], expected)
    assert recorder.seconds > 0


def test_a_step_that_was_skipped_leaves_no_trace() -> None:
    path = two_paths()[0]
    recorder = StatisticRecorder(WeightGradient())
    seen(recorder, path, *drawn(0))
    recorder.fold()
    before = recorder.means()[path.name][0].clone()
    seen(recorder, path, *drawn(1))
    recorder.drop()
    assert torch.equal(recorder.means()[path.name][0], before)
    assert recorder.steps == 1


def test_what_the_loss_was_scaled_by_is_taken_out() -> None:
    path = two_paths()[0]
    x, g = drawn(0)
    scaled, plain = (StatisticRecorder(FactorGradients()) for _ in range(2))
    seen(scaled, path, x, 1024 * g)
    scaled.fold(loss_scale=1024.0)
    seen(plain, path, x, g)
    plain.fold()
    torch.testing.assert_close(scaled.means(), plain.means(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_step_that_overflowed_counts_for_the_other_paths_alone(wrong: float) -> None:
    first, second = two_paths()
    recorder = StatisticRecorder(FactorGradients())
    x, g = drawn(0)
    for path in (first, second):
        seen(recorder, path, x, g)
    recorder.fold()
    kept = [tensor.clone() for tensor in recorder.means()[first.name]]
    broken = g.clone()
    broken[0, 0] = wrong
    seen(recorder, first, x, broken)
    seen(recorder, second, x, 3 * g)
    recorder.fold()
    found = recorder.means()
    torch.testing.assert_close(list(found[first.name]), kept)
    with torch.no_grad():
        once = FactorGradients().contribution(second, x, g)
    torch.testing.assert_close(list(found[second.name]), [2 * tensor for tensor in once])


def test_a_path_without_a_finite_step_has_no_mean_and_one_that_nothing_reached_is_missing() -> None:
    first, second = two_paths()
    recorder = StatisticRecorder(WeightGradient())
    x, g = drawn(0)
    seen(recorder, first, x, g * math.inf)
    recorder.fold()
    found = recorder.means()
    assert bool(found[first.name][0].isnan().all())
    assert second.name not in found


def test_an_edit_leaves_the_sums_of_the_paths_that_stay() -> None:
    first, second = two_paths()
    recorder = StatisticRecorder(WeightGradient())
    for path in (first, second):
        seen(recorder, path, *drawn(0))
    recorder.fold()
    for path in (first, second):
        seen(recorder, path, *drawn(1))
    recorder.keep({second.name, "layers.9.query"})
    assert set(recorder.staged) == set(recorder.sums) == set(recorder.finite) == {second.name}
    recorder.keep(set())
    assert recorder.means() == {}


@pytest.mark.parametrize("statistic", [WeightGradient(), FactorGradients()], ids=["weight", "factors"])
def test_a_window_goes_on_from_its_tensors_as_if_it_had_not_stopped(statistic: Any) -> None:
    paths = two_paths()
    whole, half = (StatisticRecorder(statistic) for _ in range(2))
    for step in range(4):
        if step == 2:
            held = {name: tensor.clone() for name, tensor in half.tensors()}
            steps, half = half.steps, StatisticRecorder(statistic)
            half.restore(held, steps, dict.fromkeys((path.name for path in paths), CPU))
        for recorder in (whole, half):
            for path in paths[: 1 + step % 2]:
                seen(recorder, path, *drawn(step))
            recorder.fold()
    assert half.steps == whole.steps == 4
    torch.testing.assert_close(half.means(), whole.means(), rtol=0, atol=0)
    names = {name for name, _ in whole.tensors()}
    assert {f"finite/{path.name}" for path in paths} <= names


@pytest.mark.parametrize(
    ("dtype", "kept"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)]
)
def test_half_precision_is_summed_in_single(dtype: torch.dtype, kept: torch.dtype) -> None:
    """Also inside autocast, which would make the products half again."""
    path = two_paths()[0]
    recorder = StatisticRecorder(WeightGradient())
    x, g = drawn(0, tokens=200, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen(recorder, path, x, g)
    recorder.fold()
    (found,) = recorder.means()[path.name]
    assert found.dtype == kept
    torch.testing.assert_close(found.double(), g.double().T @ x.double(), rtol=1e-4, atol=1e-4)


def test_a_step_that_did_not_come_to_a_path_adds_zero_to_it() -> None:
    """An expert without tokens: the mean is over all steps, whichever the path was first and last seen in."""
    often, seldom = two_paths()
    recorder = StatisticRecorder(WeightGradient())
    expected = torch.zeros(16, 16, dtype=torch.float64)
    for step in range(5):
        seen(recorder, often, *drawn(step))
        if step in (1, 3):
            x, g = drawn(10 + step)
            seen(recorder, seldom, x, g)
            expected += torch.einsum("no,ni->oi", g, x) / 5
        recorder.fold()
    torch.testing.assert_close(recorder.means()[seldom.name][0], expected)


def test_what_was_forgotten_counts_from_then_on() -> None:
    kept, edited = two_paths()
    recorder = StatisticRecorder(WeightGradient())
    for step in range(2):
        for path in (kept, edited):
            seen(recorder, path, *drawn(step))
        recorder.fold()
    recorder.keep({kept.name})
    seen(recorder, kept, *drawn(2))
    recorder.fold()
    x, g = drawn(3)
    seen(recorder, edited, x, g)
    recorder.fold()
    torch.testing.assert_close(recorder.means()[edited.name][0], torch.einsum("no,ni->oi", g, x) / 2)


def of_other_paths(share: slice) -> dict[str, Any]:
    """Both processes see the first path in each of three steps, the second process the second path in one."""
    number = share.start // 2
    first, second = two_paths()
    recorder = StatisticRecorder(WeightGradient())
    for step in range(3):
        seen(recorder, first, *drawn(10 * number + step))
        if number == 1 and step == 1:
            seen(recorder, second, *drawn(99))
        recorder.fold()
    return {name: tensors[0].tolist() for name, tensors in recorder.means().items()}


@pytest.mark.distributed
def test_processes_that_saw_other_paths_agree_on_the_mean(tmp_path: Path) -> None:
    one, other = in_two_processes(of_other_paths, tmp_path)
    assert one == other
    first, second = two_paths()
    products = [torch.einsum("no,ni->oi", g, x) for x, g in (drawn(10 * n + step) for n in (0, 1) for step in range(3))]
    torch.testing.assert_close(torch.tensor(one[first.name], dtype=torch.float64), sum(products) / 6)
    x, g = drawn(99)
    torch.testing.assert_close(torch.tensor(one[second.name], dtype=torch.float64), torch.einsum("no,ni->oi", g, x) / 6)


def test_a_path_that_an_edit_made_counts_from_the_edit() -> None:
    old, new = two_paths()
    recorder = StatisticRecorder(WeightGradient())
    for step in range(4):
        seen(recorder, old, *drawn(step))
        recorder.fold()
    recorder.keep(set())
    expected = torch.zeros(16, 16, dtype=torch.float64)
    for step in range(2):
        x, g = drawn(10 + step)
        seen(recorder, new, x, g)
        expected += torch.einsum("no,ni->oi", g, x) / 2
        recorder.fold()
    torch.testing.assert_close(recorder.means()[new.name][0], expected)


def test_a_path_that_is_kept_before_it_was_seen_counts_from_the_start() -> None:
    often, seldom = two_paths()
    recorder = StatisticRecorder(WeightGradient())
    for step in range(3):
        seen(recorder, often, *drawn(step))
        recorder.fold()
    recorder.keep({often.name, seldom.name})
    x, g = drawn(9)
    seen(recorder, seldom, x, g)
    recorder.fold()
    torch.testing.assert_close(recorder.means()[seldom.name][0], torch.einsum("no,ni->oi", g, x) / 4)
