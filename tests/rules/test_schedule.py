from __future__ import annotations

import math
from typing import Any

import pytest

from rankwise.rules.schedule import FALLBACK_EVERY, Schedule


def searches(schedule: Schedule, until: int) -> list[int]:
    """The steps before which a search comes, met as a training loop meets them."""
    found: list[int] = []
    for done in range(until):
        due = schedule.next_search(done)
        assert due is None or due >= done
        if due == done:
            found.append(done)
    return found


@pytest.mark.parametrize(
    ("fields", "until", "expected"),
    [
        ({"every": 4}, 13, [0, 4, 8, 12]),
        ({"every": 1}, 4, [0, 1, 2, 3]),
        ({"every": 4, "steps_per_epoch": 3}, 9, [0, 4, 8]),  # steps win over epochs
        ({"every": 4, "first": 3}, 13, [3, 4, 8, 12]),
        ({"every": 4, "first": 6}, 13, [6, 8, 12]),
        ({"steps_per_epoch": 10}, 21, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20]),
        ({"steps_per_epoch": 7, "per_epoch": 3}, 15, [0, 2, 4, 7, 9, 11, 14]),
        ({"steps_per_epoch": 3, "per_epoch": 5}, 7, [0, 1, 2, 3, 4, 5, 6]),  # fewer steps than searches
        ({"steps_per_epoch": 1, "per_epoch": 5}, 3, [0, 1, 2]),
        ({"steps_per_epoch": 9, "per_epoch": 1}, 28, [0, 9, 18, 27]),
        ({"steps_per_epoch": 10, "per_epoch": 2, "first": 7}, 21, [7, 10, 15, 20]),
        ({}, 151, [0, 50, 100, 150]),
        ({"first": 32}, 151, [32, 50, 100, 150]),
        ({"mode": "static"}, 200, [0]),
        ({"mode": "static", "first": 5, "every": 2}, 200, [5]),
        ({"mode": "off"}, 200, []),
        ({"mode": "off", "first": 5, "every": 2, "steps_per_epoch": 3}, 200, []),
        ({"every": 4, "stop_at": 0.5, "total_steps": 20}, 20, [0, 4, 8]),
        ({"every": 5, "stop_at": 0.5, "total_steps": 20}, 20, [0, 5]),  # 10 of 20 is half: the choice stays
        ({"every": 1, "stop_at": 0.7, "total_steps": 10}, 10, [0, 1, 2, 3, 4, 5, 6]),
        ({"steps_per_epoch": 4, "per_epoch": 2, "stop_at": 0.75, "total_steps": 8}, 8, [0, 2, 4]),
        ({"every": 5, "total_steps": 10}, 20, [0, 5]),  # none after the last step
        ({"every": 5, "first": 9, "stop_at": 0.1, "total_steps": 10}, 20, [9]),  # the first one always comes
    ],
)
def test_searches_come_before_these_steps(fields: dict[str, Any], until: int, expected: list[int]) -> None:
    assert searches(Schedule(**{"mode": "dynamic", **fields}), until) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 7, 58, 230])
@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_search_k_of_an_epoch_comes_before_its_step_floor_k_s_over_n(size: int, count: int) -> None:
    expected = {epoch * size + math.floor(k * size / count) for epoch in range(3) for k in range(count)}
    assert searches(Schedule("dynamic", per_epoch=count, steps_per_epoch=size), 3 * size) == sorted(expected)


@pytest.mark.parametrize("first", [0, 1, 31, 32])
def test_the_next_search_is_the_first_one_not_yet_past(first: int) -> None:
    schedule = Schedule("dynamic", per_epoch=3, steps_per_epoch=11, first=first, total_steps=60, stop_at=0.9)
    steps = searches(schedule, 60)
    for done in range(60):
        assert schedule.next_search(done) == min((step for step in steps if step >= done), default=None)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),
        *((known, False) for known in ({"every": 9}, {"steps_per_epoch": 9}, {"mode": "static"}, {"mode": "off"})),
    ],
)
def test_it_says_when_fifty_steps_stand_in_for_an_unknown_epoch(fields: dict[str, Any], expected: bool) -> None:
    assert FALLBACK_EVERY == 50
    assert Schedule(**{"mode": "dynamic", **fields}).falls_back is expected


def test_a_fraction_of_an_unknown_whole_is_refused_where_it_matters() -> None:
    with pytest.raises(ValueError, match=r"stop_searching_at=0\.7.*total_steps"):
        Schedule("dynamic", stop_at=0.7)
    assert searches(Schedule("static", stop_at=0.7), 9) == [0]
    assert searches(Schedule("off", stop_at=0.7), 9) == []
