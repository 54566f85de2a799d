"""The joint choice against its definition: brute force for gains, a fresh solve per step for the greedy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from rankwise.rules.joint import (
    DenseCurvature,
    ExampleCurvature,
    TimeRoom,
    Vector,
    choose_jointly,
    curvature_of,
    joint_gain,
)

TERMS = 70


def drawn(components: int, examples: int, seed: int = 0) -> tuple[Vector, Vector]:
    """Slopes and a_e; half of the components are nearly twins of the other half."""
    generator = np.random.default_rng(seed)
    half = generator.normal(size=(examples, -(-components // 2)))
    twins = half + 0.1 * generator.normal(size=half.shape)
    values = np.concatenate([half, twins], axis=1)[:, :components]
    return values.T @ generator.normal(size=examples), values


def matrix_of(values: Vector) -> Vector:
    return np.asarray(values.T @ values / TERMS)


def textbook(lin: Vector, matrix: Vector, costs: list[int], budget: int, damping: float) -> tuple[list[int], float]:
    """Try every component that fits, solve afresh, take the best gain per cost; until nothing fits."""
    chosen: list[int] = []
    while True:
        left = budget - sum(costs[j] for j in chosen)
        fitting = [j for j in range(len(lin)) if j not in chosen and costs[j] <= left]
        if not fitting:
            return chosen, joint_gain(lin, matrix, chosen, damping=damping) if chosen else 0.0
        now = joint_gain(lin, matrix, chosen, damping=damping) if chosen else 0.0
        rates = [(joint_gain(lin, matrix, [*chosen, j], damping=damping) - now) / costs[j] for j in fitting]
        chosen.append(fitting[int(np.argmax(rates))])


@pytest.mark.parametrize("subset", [(), (2,), (0, 3), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("damping", [0.1, 1.0])
def test_a_gain_is_the_best_decrease_of_the_damped_quadratic_model(subset: tuple[int, ...], damping: float) -> None:
    lin, values = drawn(5, 9)
    matrix = matrix_of(values)
    lam = damping * np.trace(matrix) / 5
    some = list(subset)

    def decrease(step: Vector) -> float:
        return float(lin[some] @ step - (step @ matrix[np.ix_(some, some)] @ step + lam * step @ step) / 2)

    gain = joint_gain(lin, matrix, some, damping=damping)
    if not some:
        assert gain == 0.0
        return
    step = np.zeros(len(some))
    for _ in range(20_000):  # gradient ascent, with nothing in common with the formula
        step += (lin[some] - matrix[np.ix_(some, some)] @ step - lam * step) / (np.trace(matrix) + lam)
    assert gain == pytest.approx(decrease(step), rel=1e-9)
    nearby = np.random.default_rng(1).normal(size=(50, len(some)))
    assert all(decrease(step + 0.1 * other) < gain for other in nearby)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", [DenseCurvature, ExampleCurvature])
def test_greedy_is_the_textbook_greedy_and_its_marginals_add_up_to_the_gain(make: Any, seed: int) -> None:
    lin, values = drawn(14, 9, seed)
    costs = [3, 5, 2, 7, 4, 3, 5] * 2
    matrix = matrix_of(values)
    picks = choose_jointly(lin, make(matrix) if make is DenseCurvature else make(values, TERMS), costs, 23)
    order, gain = textbook(lin, matrix, costs, 23, 1.0)
    assert list(picks.order) == order
    assert sum(picks.marginals) == pytest.approx(gain, rel=1e-5)  # a_e is in single precision where H is not formed
    spent, gains = picks.curve()
    assert spent[-1] == 23 - picks.left == sum(costs[j] for j in order)
    assert gains[-1] == pytest.approx(gain, rel=1e-5)
    for count in range(1, len(order) + 1):
        assert gains[count - 1] == pytest.approx(joint_gain(lin, matrix, order[:count]), rel=1e-5)


def test_greedy_comes_close_to_the_best_of_all_sets_and_never_beyond_it() -> None:
    lin, values = drawn(9, 12)
    matrix, costs = matrix_of(values), [2, 3, 2, 4, 3, 2, 3, 4, 2]
    sets = [s for size in range(1, 6) for s in itertools.combinations(range(9), size) if sum(costs[j] for j in s) <= 9]
    best = max(joint_gain(lin, matrix, s) for s in sets)
    greedy = sum(choose_jointly(lin, DenseCurvature(matrix), costs, 9).marginals)
    assert 0.9 * best < greedy <= best + 1e-12


@pytest.mark.parametrize("examples", [30, 200])
def test_blocks_of_columns_choose_what_single_ones_do(examples: int) -> None:
    """More picks than a block of columns has, and more examples than there are components."""
    lin, values = drawn(150, examples)
    by_examples = choose_jointly(lin, ExampleCurvature(values, TERMS), [1] * 150, 140)
    whole = choose_jointly(lin, DenseCurvature(matrix_of(values)), [1] * 150, 140)
    assert by_examples.order[:60] == whole.order[:60]
    assert sum(by_examples.marginals) == pytest.approx(sum(whole.marginals), rel=1e-4)


def test_of_two_twins_one_is_taken_and_an_independent_one_before_the_other() -> None:
    values = np.eye(3)[:, [0, 0, 1]]
    picks = choose_jointly(np.array([1.0, 0.99, 0.7]), curvature_of(values, 1), [1] * 3, 2)
    assert picks.order == (0, 2)


def test_equal_components_are_taken_by_index() -> None:
    picks = choose_jointly(np.ones(5), DenseCurvature(np.eye(5)), [1] * 5, 3)
    assert picks.order == (0, 1, 2)


def test_a_scaled_loss_changes_no_choice() -> None:
    lin, values = drawn(12, 9)
    one, hundred = (choose_jointly(k * lin, curvature_of(values, TERMS), [1] * 12, 6) for k in (1.0, 100.0))
    assert one.order == hundred.order
    assert np.allclose(np.array(one.marginals) * 1e4, hundred.marginals)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_full_breadth_is_the_uniform_plan_exactly(rank: int) -> None:
    lin, values = drawn(20, 9)
    owners = [j % 5 for j in range(20)]
    costs = [2 + owner for owner in owners]
    budget = rank * sum(range(2, 7))
    picks = choose_jointly(lin, curvature_of(values, TERMS), costs, budget, owners=owners, breadth=1.0)
    assert np.bincount([owners[j] for j in picks.order]).tolist() == [rank] * 5
    assert picks.left == 0


def test_breadth_brings_in_owners_that_gain_alone_leaves_out() -> None:
    lin = np.array([10.0, 9.0, 8.0, 0.1, 0.1])
    owners = [0, 0, 0, 1, 2]
    found = [
        [owners[j] for j in choose_jointly(lin, DenseCurvature(np.eye(5)), [1] * 5, 3, owners=owners, breadth=b).order]
        for b in (0.0, 1.0)
    ]
    assert found == [[0, 0, 0], [0, 1, 2]]


@pytest.mark.parametrize("breadth", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_breadth_counts_an_owners_further_components_less(seed: int, breadth: float) -> None:
    """Against a loop by the definition: gain per cost, divided by ``d^(breadth / (1 - breadth))``."""
    lin, values = drawn(12, 20, seed)
    costs, owners = np.random.default_rng(seed).integers(3, 9, 12).tolist(), [j % 4 for j in range(12)]
    matrix = matrix_of(values)
    chosen: list[int] = []
    while fitting := [j for j in range(12) if j not in chosen and costs[j] <= 30 - sum(costs[k] for k in chosen)]:
        now = joint_gain(lin, matrix, chosen) if chosen else 0.0
        worth = {}
        for j in fitting:
            place = 1 + sum(owners[k] == owners[j] for k in chosen)
            worth[j] = (joint_gain(lin, matrix, [*chosen, j]) - now) / costs[j] / place ** (breadth / (1 - breadth))
        chosen.append(max(worth, key=lambda j: worth[j]))
    picks = choose_jointly(lin, curvature_of(values, TERMS), costs, 30, owners=owners, breadth=breadth)
    assert list(picks.order) == chosen
    assert sum(picks.marginals) == pytest.approx(joint_gain(lin, matrix, chosen))


def test_more_breadth_never_spreads_less() -> None:
    """Whatever the scale of the gains; from 0.98 on an owner's second component waits for every first one."""
    lin = np.array([100.0, 60.0, 40.0, 30.0, 1.0, 0.1])
    owners = [0, 0, 0, 1, 2, 3]
    spread = []
    for breadth in (0.0, 0.3, 0.5, 0.7, 0.9, 0.985, 1.0):
        picks = choose_jointly(lin, DenseCurvature(np.eye(6)), [1] * 6, 4, owners=owners, breadth=breadth)
        spread.append(len({owners[j] for j in picks.order}))
    assert spread == sorted(spread)
    assert (spread[0], spread[-2:]) == (2, [4, 4])


def test_a_limit_per_owner_holds() -> None:
    lin, values = drawn(12, 9)
    owners = [j % 3 for j in range(12)]
    picks = choose_jointly(lin, curvature_of(values, TERMS), [1] * 12, 12, owners=owners, most=[2, 0, 1])
    assert np.bincount([owners[j] for j in picks.order], minlength=3).tolist() == [2, 0, 1]
    assert picks.left == 9


@pytest.mark.parametrize("seed", range(4))
def test_under_a_time_limit_each_pick_is_the_best_for_the_shares_it_takes(seed: int) -> None:
    """Against a loop by the definition: gain per (share of the budget + share of the seconds), both limits kept."""
    lin, values = drawn(12, 20, seed)
    generator = np.random.default_rng(seed)
    costs, owners = generator.integers(3, 9, 12).tolist(), [j % 4 for j in range(12)]
    first, more = generator.uniform(1, 3, 4), generator.uniform(0.1, 0.3, 4)
    budget, limit = 40, 7.0
    matrix = matrix_of(values)
    chosen: list[int] = []
    left, seconds = float(budget), limit
    while True:
        taken = {owners[j] for j in chosen}
        takes = [more[owner] if owner in taken else first[owner] for owner in owners]
        fitting = [j for j in range(12) if j not in chosen and costs[j] <= left and takes[j] <= seconds]
        if not fitting:
            break
        now = joint_gain(lin, matrix, chosen) if chosen else 0.0
        rates = [
            (joint_gain(lin, matrix, [*chosen, j]) - now) / (costs[j] / budget + takes[j] / limit) for j in fitting
        ]
        best = fitting[int(np.argmax(rates))]
        chosen.append(best)
        left, seconds = left - costs[best], seconds - takes[best]
    room = TimeRoom(limit, first, more)
    picks = choose_jointly(lin, curvature_of(values, TERMS), costs, budget, owners=owners, room=room)
    assert list(picks.order) == chosen
    assert sum(picks.marginals) == pytest.approx(joint_gain(lin, matrix, chosen))
    assert picks.left == left
    assert seconds < max(first)  # the limit was felt


def test_nothing_that_fits_stays_outside() -> None:
    lin, values = drawn(8, 9)
    costs = [5, 4, 7, 3, 5, 4, 7, 3]
    picks = choose_jointly(lin, curvature_of(values, TERMS), costs, 20)
    assert all(costs[j] > picks.left for j in range(8) if j not in picks.order)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"damping": 0.0}, "damping=0.0 must be positive"),
        ({"breadth": 1.5}, r"breadth=1.5 must lie in \[0, 1\]"),
        ({"costs": [1, 0, 1]}, "costs must be positive, got 0"),
        ({"curvature": DenseCurvature(np.zeros((3, 3)))}, "mean curvature of the 3 components is 0.0"),
    ],
)
def test_bad_numbers_are_errors_that_say_so(fields: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"curvature": DenseCurvature(np.eye(3)), "costs": [1, 1, 1], "budget": 2, **fields}
    with pytest.raises(ValueError, match=message):
        choose_jointly(np.ones(3), **given)


def test_curvature_is_formed_whole_or_not_by_size() -> None:
    small, large = (curvature_of(np.ones((3, size)), 3) for size in (10, 2_001))
    assert (type(small).__name__, type(large).__name__) == ("DenseCurvature", "ExampleCurvature")
