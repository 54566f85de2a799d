"""Learning rates on a geometric grid, and the choice among them."""

from __future__ import annotations

import math

import pytest

from rankwise.study.grid import Rates, at_edge, lowest


def rates(low: float = 1e-3, to: float = 8e-3, factor: float = 2.0) -> Rates:
    return Rates.model_validate({"from": low, "to": to, "factor": factor})


def test_grid_is_geometric_and_ends_in_time() -> None:
    assert rates().grid() == [1e-3, 2e-3, 4e-3, 8e-3]
    assert rates(to=7.9e-3).grid() == [1e-3, 2e-3, 4e-3]
    assert rates().grid(1, 2) == [5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2]


@pytest.mark.parametrize(
    ("low", "to", "factor", "grid"),
    [
        (1e-3, 1e-3, 2.0, [1e-3]),
        (1e-4, 1e-3, 10**0.25, [1e-4, 1.778e-4, 3.162e-4, 5.623e-4, 1e-3]),  # four to a decade
        (3e-5, 8.9e-5, 3.0, [3e-5]),
        (3e-5, 9e-5, 3.0, [3e-5, 9e-5]),  # rounding does not lose the last
        (1e-300, 1e-299, 10.0, [1e-300, 1e-299]),
    ],
)
def test_a_grid_has_every_rate_up_to_its_end(low: float, to: float, factor: float, grid: list[float]) -> None:
    assert rates(low, to, factor).grid() == grid


def test_four_rates_to_a_decade_are_the_default() -> None:
    own = Rates.model_validate({"from": 1e-3, "to": 1e-2})
    assert own.grid() == [1e-3, 1.78e-3, 3.168e-3, 5.64e-3]  # 1.78^4 is a little more than 10
    with pytest.raises(ValueError, match="frozen"):
        own.factor = 2.0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"from": 2e-3, "to": 1e-3}, "from=0.002 is above to=0.001: the grid goes upwards"),
        ({"from": 0, "to": 1e-3}, "greater than 0"),
        ({"from": -1e-3, "to": 1e-3}, "greater than 0"),
        ({"from": 1e-3}, "Field required"),
        ({"from": 1e-3, "to": 1e-2, "factor": 1.04}, "greater than or equal to 1.05"),
        ({"from": 1e-3, "to": math.inf}, "finite number"),
        ({"from": math.nan, "to": 1.0}, "finite number"),
        ({"from": 1e-3, "to": 1.0, "factor": math.inf}, "finite number"),
        ({"from": 1e-3, "to": 1.0, "step": 2}, "Extra inputs are not permitted"),
    ],
)
def test_what_is_no_grid_is_refused(given: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Rates.model_validate(given)


@pytest.mark.parametrize(
    ("means", "rate"),
    [
        ({}, None),
        ({1e-3: math.inf, 1e-2: math.nan}, None),
        ({1e-3: 0.5}, 1e-3),
        ({1e-2: 0.5, 1e-3: 0.5, 1e-1: 0.7}, 1e-3),  # the lower of two that are equal
        ({1e-3: math.nan, 1e-2: 0.7, 1e-1: math.inf}, 1e-2),
        ({1e-3: 0.5, 1e-2: -0.5}, 1e-2),
    ],
)
def test_the_lowest_mean_wins(means: dict[float, float], rate: float | None) -> None:
    assert lowest(means) == rate


def test_an_edge_has_a_side() -> None:
    grid = [1e-3, 2e-3, 4e-3]
    assert [at_edge(rate, grid) for rate in grid] == [-1, 0, 1]
    assert at_edge(1e-3, [1e-3]) == -1  # of a single rate the grid grows downwards first
