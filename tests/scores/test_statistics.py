"""What is summed while scores are collected, against the same sums token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models import adapted, fill_, tiny_llama
from torch import Tensor

import rankwise
from rankwise.paths.low_rank_path import LowRankPath
from rankwise.scores.statistics import (
    AUTO_COLUMNS,
    EXACT_BYTES,
    FactorGradients,
    SketchedGradient,
    Statistic,
    WeightFlow,
    WeightGradient,
    gradient_statistic,
)

TOKENS, WIDE, NARROW = 5, 16, 8  # values of grouped-query attention are half as wide


def value_path(**fields: Any) -> LowRankPath:
    """A float64 path of rank 3 from 16 to 8."""
    options = {"target_modules": ["v_proj"], "r": 3, "lora_alpha": 2, **fields}
    model = adapted(tiny_llama(1), task_type="CAUSAL_LM", **options).double()
    fill_(model)
    return rankwise.named_paths(model)["layers.0.v_proj"]


def passed(seed: int = 0, tokens: int = TOKENS) -> tuple[Tensor, Tensor]:
    """What tokens were at the source, and their gradients at the destination."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, WIDE, generator=generator, dtype=torch.float64)
    return x, torch.randn(tokens, NARROW, generator=generator, dtype=torch.float64)


def by_tokens(x: Tensor, g: Tensor) -> Tensor:
    """``G``: the sum over tokens of ``g x^T``, entry by entry."""
    total = torch.zeros(g.shape[1], x.shape[1], dtype=torch.float64)
    for token in range(len(x)):
        for o in range(g.shape[1]):
            for i in range(x.shape[1]):
                total[o, i] += g[token, o] * x[token, i]
    return total


def detached(found: tuple[Tensor, ...]) -> list[Tensor]:
    return [tensor.detach() for tensor in found]


def test_the_gradient_of_the_matrix() -> None:
    x, g = passed()
    (found,) = WeightGradient().contribution(value_path(), x, g)
    torch.testing.assert_close(found, by_tokens(x, g))


def test_the_gradients_of_the_factors_are_those_of_autograd() -> None:
    path = value_path()
    x, g = passed()
    output = path.scaling * (x @ path.lora_A.T @ path.lora_B.T)
    expected = torch.autograd.grad((g * output).sum(), [path.lora_A, path.lora_B])
    found = detached(FactorGradients().contribution(path, x, g))
    assert path.scaling == pytest.approx(2 / 3)
    torch.testing.assert_close(found, list(expected))


@pytest.mark.parametrize("kind", ["v_proj", "res1", "layer"])
def test_the_flow_is_the_absolute_matrix_times_the_gradient(kind: str) -> None:
    """``W`` is ``|W0| + s |B| |A|``, with the identity or nothing in place of ``W0`` beside a block path."""
    fields: dict[str, Any] = {"target_modules": ["v_proj"], "shortcuts": ["res1", "layer"], "shortcut_r": 3}
    model = adapted(tiny_llama(1), task_type="CAUSAL_LM", r=3, lora_alpha=2, **fields).double()
    fill_(model)
    path = rankwise.named_paths(model)[f"layers.0.{kind}"]
    x = passed()[0]
    g = passed(1)[1] if kind == "v_proj" else passed(1)[0]
    base = {"v_proj": path.base_weight().detach(), "res1": torch.eye(WIDE), "layer": torch.zeros(WIDE, WIDE)}[kind]
    weight = base.double().abs() + path.scaling * path.lora_B.detach().abs() @ path.lora_A.detach().abs()
    (found,) = WeightFlow().contribution(path, x, g)
    torch.testing.assert_close(found, (weight * by_tokens(x, g)).sum())


def test_a_sketch_is_the_gradient_times_a_matrix_that_seed_and_name_determine() -> None:
    """Its square has the mean of the squared norm over seeds, within four standard errors."""
    path = value_path()
    x, g = passed()
    exact = by_tokens(x, g)
    first, again = (SketchedGradient(4, seed=7) for _ in range(2))
    (found,) = first.contribution(path, x, g)
    assert found.shape == (NARROW, 4)
    torch.testing.assert_close(found, exact @ first.omegas[path.name])
    assert torch.equal(found, again.contribution(path, x, g)[0])
    ratios = []
    for seed in range(300):
        (sketch,) = SketchedGradient(4, seed).contribution(path, x, g)
        ratios.append(float(sketch.square().sum() / exact.square().sum()))
    assert abs(sum(ratios) / 300 - 1) < 4 * (2 / 4 / 300) ** 0.5


def test_a_sketch_follows_the_precision_of_its_tokens() -> None:
    path, statistic = value_path(), SketchedGradient(4, seed=0)
    x, g = passed()
    (wide,) = statistic.contribution(path, x, g)
    (narrow,) = statistic.contribution(path, x.float(), g.float())
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-4)
    assert torch.equal(statistic.contribution(path, x, g)[0], wide)  # and back


STATISTICS: list[Statistic] = [WeightGradient(), SketchedGradient(4, 0), FactorGradients(), WeightFlow()]


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda one: type(one).__name__)
def test_it_adds_up_over_tokens_and_is_linear_in_the_gradient(statistic: Statistic) -> None:
    """So that micro-batches, steps, processes and a loss scale come to the same."""
    path = value_path()
    x, g = passed()
    whole = detached(statistic.contribution(path, x, g))
    parts = [detached(statistic.contribution(path, x[part], g[part])) for part in (slice(0, 2), slice(2, None))]
    torch.testing.assert_close([a + b for a, b in zip(*parts, strict=True)], whole)
    tripled = detached(statistic.contribution(path, x, 3 * g))
    torch.testing.assert_close(tripled, [3 * tensor for tensor in whole])
    nothing = detached(statistic.contribution(path, x[:0], g[:0]))
    assert [tensor.shape for tensor in nothing] == [tensor.shape for tensor in whole]
    assert not any(bool(tensor.any()) for tensor in nothing)


@pytest.mark.parametrize(
    ("proxy", "score_on", "sketch", "expected"),
    [
        ("grad_norm", "weight", None, WeightGradient),
        ("grad_norm", "weight", 5, SketchedGradient),
        ("grad_norm", "weight", "auto", WeightGradient),  # a tiny model's sums fit
        ("grad_norm", "factors", 5, FactorGradients),
        ("snip", "weight", 5, WeightGradient),  # products with W are not known from a sketch
        ("snip", "weight", "auto", WeightGradient),
        ("snip", "factors", None, FactorGradients),
    ],
)
def test_what_a_proxy_needs_summed(proxy: str, score_on: str, sketch: Any, expected: type) -> None:
    found = gradient_statistic(proxy, score_on, [value_path()], sketch=sketch, seed=3)
    assert type(found) is expected
    if isinstance(found, SketchedGradient):
        assert (found.columns, found.seed) == (5, 3)


def test_beyond_256_mb_a_sketch_is_taken_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two paths of 8 x 16 numbers of four bytes."""
    assert EXACT_BYTES == 256 * 1024 * 1024
    paths = [value_path()] * 2
    for limit, expected in ((2 * 8 * 16 * 4, WeightGradient), (2 * 8 * 16 * 4 - 1, SketchedGradient)):
        monkeypatch.setattr("rankwise.scores.statistics.EXACT_BYTES", limit)
        found = gradient_statistic("grad_norm", "weight", paths, sketch="auto", seed=0)
        assert type(found) is expected
        if isinstance(found, SketchedGradient):
            assert found.columns == AUTO_COLUMNS
