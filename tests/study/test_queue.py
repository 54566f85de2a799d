"""The queue: a cell is one worker's at a time, comes back when its worker dies, and is given up after some deaths."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rankwise.study.queue import DEATHS, Queue, default_storage

GRACE = 3  # heartbeats


def wait_for(what: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


def test_cells_are_handed_out_once_and_in_order(tmp_path: Path) -> None:
    url = default_storage(tmp_path)
    first, second = Queue(url, "q"), Queue(url, "q")
    assert first.fill(["a", "b", "c"]) == []
    assert second.fill(["a", "b", "c"]) == []  # they are there already
    taken = [queue.claim() for queue in (first, second, first, second)]
    assert [claim and claim.name for claim in taken] == ["a", "b", "c", None]
    assert taken[0] is not None
    first.finish(taken[0], 0.5)
    assert first.names("COMPLETE") == ["a"]
    assert sorted(second.names("RUNNING")) == ["b", "c"]


def test_a_cell_that_is_put_back_is_the_next_workers(tmp_path: Path) -> None:
    queue = Queue(default_storage(tmp_path), "q")
    queue.fill(["a"])
    claim = queue.claim()
    assert claim is not None
    queue.put_back(claim)
    assert queue.claim() == claim


def test_a_silent_workers_cell_is_taken_over_and_it_learns_of_it(tmp_path: Path) -> None:
    url = default_storage(tmp_path)
    silent, other = Queue(url, "q", heartbeat=1), Queue(url, "q", heartbeat=1)
    silent.fill(["a"])
    claim = silent.claim()
    assert claim is not None

    def lost() -> bool:
        other.give_back_lost()
        return other.names("FAIL") == ["a"]

    wait_for(lost, 4 * GRACE)
    assert other.fill(["a"]) == []
    again = other.claim()
    assert again is not None
    assert again.trial != claim.trial
    told: list[bool] = []
    with silent.alive(claim, lambda: told.append(True)):
        wait_for(lambda: bool(told), 4)
    silent.finish(claim, 0.1)  # too late, and harmless
    silent.put_back(claim)
    other.finish(again, 0.2)
    assert (other.names("COMPLETE"), other.names("FAIL"), other.names("WAITING")) == (["a"], ["a"], [])


@pytest.mark.slow
def test_a_living_worker_keeps_its_cell(tmp_path: Path) -> None:
    queue = Queue(default_storage(tmp_path), "q", heartbeat=1)
    queue.fill(["a"])
    claim = queue.claim()
    assert claim is not None
    with queue.alive(claim, lambda: pytest.fail("it was alive")):
        for _ in range(8):
            time.sleep(1)
            queue.give_back_lost()
    assert queue.names("RUNNING") == ["a"]


def test_a_cell_that_kills_its_workers_is_given_up_until_it_is_forgiven(tmp_path: Path) -> None:
    from optuna.trial import TrialState

    queue = Queue(default_storage(tmp_path), "q")
    for _ in range(DEATHS):
        assert queue.fill(["a"]) == []
        claim = queue.claim()
        assert claim is not None
        queue.storage.set_trial_state_values(claim.trial, state=TrialState.FAIL)
    assert queue.fill(["a"]) == ["a"]
    queue.forgive("a")
    assert queue.fill(["a"]) == []
    assert queue.names("WAITING") == ["a"]
    assert math.isinf(queue.trials("COMPLETE")[0].value or 0.0)


@pytest.mark.parametrize("url", ["queue.db", "nosuch://somewhere/queue"])
def test_a_storage_that_can_not_be_opened_says_what_one_looks_like(url: str) -> None:
    with pytest.raises(ValueError, match="sqlite:///FILE or postgresql://USER@HOST/NAME"):
        Queue(url, "q")
