"""Rank-one components of a gradient, against full decompositions in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models import class_batches
from tests.scores.test_curvature import bert_model
from torch import Tensor

import rankwise
from rankwise.scores.components import (
    Directions,
    LowRankGradient,
    TwoSidedSketch,
    component_statistic,
    directions_of,
    gradients_of,
    singular_triplets,
    truncation_of,
)
from rankwise.scores.statistics import EXACT_BYTES, WeightGradient

SHAPES = [(7, 5), (5, 7), (6, 6), (1, 4), (4, 1)]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_sketched(gradient: Tensor) -> LowRankGradient:
    """The same matrix in the form in which a sketch knows it."""
    tall, wide = torch.linalg.qr(gradient)
    return LowRankGradient(tall, wide)


@pytest.mark.parametrize("sketched", [False, True])
@pytest.mark.parametrize("components", [1, 3, 50])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_largest_singular_triplets_are_those_of_a_full_decomposition(
    shape: tuple[int, int], components: int, sketched: bool
) -> None:
    gradient = drawn(*shape)
    u, sigma, v = singular_triplets(as_sketched(gradient) if sketched else gradient, components)
    expected = torch.linalg.svdvals(gradient)[:components]
    torch.testing.assert_close(sigma, expected)
    k = len(expected)
    assert (u.shape, v.shape) == ((shape[0], k), (shape[1], k))
    torch.testing.assert_close(u.T @ u, torch.eye(k, dtype=torch.float64))
    torch.testing.assert_close(v.T @ v, torch.eye(k, dtype=torch.float64))
    torch.testing.assert_close(gradient @ v, u * sigma)


def test_a_gradient_of_zeros_has_directions_without_a_slope() -> None:
    gradient = torch.zeros(4, 3, dtype=torch.float64)
    found = directions_of(gradient, 2, "adam")
    assert bool(found.left.isfinite().all())
    assert found.slopes(gradient).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("sketched", [False, True])
def test_a_slope_is_the_sum_over_entries_of_gradient_and_direction(sketched: bool) -> None:
    gradient, directions = drawn(6, 4), Directions(drawn(6, 3, seed=1), drawn(4, 3, seed=2))
    expected = [
        sum(gradient[o, i] * directions.left[o, j] * directions.right[i, j] for o in range(6) for i in range(4))
        for j in range(3)
    ]
    found = directions.slopes(as_sketched(gradient) if sketched else gradient)
    torch.testing.assert_close(found, torch.stack([torch.as_tensor(value) for value in expected]))


@pytest.mark.parametrize("rank", [1, 2, 9])
def test_a_truncation_is_the_nearest_matrix_of_its_rank(rank: int) -> None:
    """By Eckart and Young: what is left has the other singular values."""
    gradient = drawn(6, 4)
    terms = truncation_of(gradient, rank)
    truncated = terms.left @ terms.right.T
    torch.testing.assert_close(
        torch.linalg.svdvals(gradient - truncated)[: max(4 - rank, 0)], torch.linalg.svdvals(gradient)[rank:]
    )
    torch.testing.assert_close(terms.slopes(gradient).sum(), truncated.square().sum())


def test_directions_matched_to_adam_are_the_best_of_one_size() -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    u, sigma, v = singular_triplets(gradient, 3)
    found = directions_of(gradient, 3, "adam")
    assert torch.allclose(found.slopes(gradient), sigma * u.abs().sum(0))
    assert torch.equal(found.left, u.sign())
    assert torch.allclose(directions_of(gradient, 3, "sgd").slopes(gradient), sigma)
    for _ in range(20):
        other = torch.randn(7, generator=generator).sign().double()
        assert float(other @ gradient @ v[:, 0]) <= float(found.slopes(gradient)[0]) + 1e-12


def test_sketched_directions_are_close_to_exact_ones() -> None:
    """One pass over tokens of a matrix with a falling spectrum, as gradients have; and exact where G has low rank."""
    path = next(iter(rankwise.named_paths(bert_model()).values()))
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(90, 60, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    for sizes, angle in ((0.5 ** torch.arange(60), 0.99), ((torch.arange(60) < 4) + 0.0, 1 - 1e-9)):
        sizes = sizes.double() * torch.linspace(1.2, 1.0, 60, dtype=torch.float64)
        gradient = left * sizes @ right.T
        statistic = TwoSidedSketch(4, seed=1)
        tokens_x = torch.randn(200, 90, generator=generator, dtype=torch.float64)
        tokens_g = torch.linalg.pinv(tokens_x.T) @ gradient.T  # so that g^T x is the matrix
        parts = (slice(0, 99), slice(99, 200))
        halves = [statistic.contribution(path, tokens_x[part], tokens_g[part]) for part in parts]
        sums = tuple(a + b for a, b in zip(*halves, strict=True))
        sketched = statistic.gradient(path.name, sums)
        u, sigma, v = singular_triplets(gradient, 3)
        su, ssigma, sv = singular_triplets(sketched, 3)
        assert ((u * su).sum(0).abs() > angle).all()
        assert ((v * sv).sum(0).abs() > angle).all()
        assert torch.allclose(sigma, ssigma, rtol=0.02)


def test_a_model_too_large_for_exact_gradients_is_sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    data = class_batches(4)
    exact = rankwise.score_paths(bert_model(), data, proxy="newton")
    monkeypatch.setattr("rankwise.scores.components.EXACT_BYTES", 0)
    sketched = rankwise.score_paths(bert_model(), data, proxy="newton")
    assert sketched.keys() == exact.keys()
    best = sorted(exact, key=exact.__getitem__)[-3:]
    assert sketched != exact
    assert [sketched[name] for name in best] == pytest.approx([exact[name] for name in best], rel=0.5)


def a_path() -> Any:
    return next(iter(rankwise.named_paths(bert_model()).values()))


def test_a_sketch_is_the_gradient_times_matrices_that_seed_and_name_determine() -> None:
    path = a_path()
    x, g = drawn(9, 60, seed=1), drawn(9, 50, seed=2)
    statistic, again = (TwoSidedSketch(2, seed=5) for _ in range(2))
    image, coimage = statistic.contribution(path, x, g)
    gradient = torch.einsum("no,ni->oi", g, x)
    omega, psi = (matrix.double() for matrix in statistic.matrices(path.name, 50, 60))
    assert (omega.shape, psi.shape) == ((60, 5), (50, 11))  # 2 k + 1 and twice that and one, for k = 2
    torch.testing.assert_close(image, gradient @ omega)
    torch.testing.assert_close(coimage, psi.T @ gradient)
    assert torch.equal(again.contribution(path, x, g)[0], image)
    assert not torch.equal(TwoSidedSketch(2, seed=6).contribution(path, x, g)[0], image)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (1, 6)])
def test_a_sketch_of_a_small_matrix_knows_all_of_it(shape: tuple[int, int]) -> None:
    """Not even Gaussian matrices are wider than what they are multiplied with."""
    path, statistic = a_path(), TwoSidedSketch(8, seed=0)
    x, g = drawn(9, shape[1], seed=1), drawn(9, shape[0], seed=2)
    found = statistic.gradient(path.name, statistic.contribution(path, x, g))
    omega, psi = statistic.matrices(path.name, *shape)
    assert (omega.shape, psi.shape) == ((shape[1], min(shape)), (shape[0], shape[0]))
    torch.testing.assert_close(found.tall @ found.wide, g.T @ x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("statistic", [WeightGradient(), TwoSidedSketch(2, seed=0)], ids=["exact", "sketched"])
def test_a_path_whose_gradient_is_not_finite_has_none(statistic: Any) -> None:
    path = a_path()
    x, g = drawn(9, 16, seed=1), drawn(9, 16, seed=2)
    whole, broken = statistic.contribution(path, x, g), statistic.contribution(path, x, g / 0.0)
    found = gradients_of(statistic, {path.name: whole, "layers.9.query": broken})
    assert list(found) == [path.name]
    assert gradients_of(statistic, {}) == {}


@pytest.mark.parametrize("parts", [1, 2])
def test_sketches_are_taken_where_all_parts_of_all_gradients_would_not_fit(
    parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert EXACT_BYTES == 256 * 1024 * 1024
    paths = [a_path()] * 3
    needed = parts * 3 * 16 * 16 * 4
    for limit, expected in ((needed, WeightGradient), (needed - 1, TwoSidedSketch)):
        monkeypatch.setattr("rankwise.scores.components.EXACT_BYTES", limit)
        assert type(component_statistic(paths, 4, parts=parts, seed=0)) is expected
