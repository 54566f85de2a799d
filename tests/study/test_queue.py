"""The queue: a cell is one worker's at a time, comes back when its worker dies, and is given up after some deaths."""

from __future__ import annotations

import math
import multiprocessing
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.event import listen
from tests.study.cells import started, two_arms

from rankwise.study.folder import StudyFolder
from rankwise.study.plan import Group, Seeds, Study
from rankwise.study.queue import DEATHS, GRACE, Queue, StorageError, default_storage
from rankwise.study.working import take


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


CELLS = 3


def claims(root: Path) -> list[str]:
    """Take cells until none waits, as a worker does."""
    folder = StudyFolder(root)
    taken = []
    with folder.lock():
        queue = Queue(default_storage(root), "q")

    def slowly(*told: object) -> None:
        if str(told[2]).startswith("UPDATE trials"):
            time.sleep(0.2)  # between reading a cell's state and writing it

    listen(queue.storage.engine, "before_cursor_execute", slowly)
    with queue:
        while (claim := take(folder, queue)[2]) is not None:
            taken.append(claim.name)
    return taken


@pytest.mark.parametrize(
    "pool",
    [
        lambda: ThreadPoolExecutor(2),
        pytest.param(
            lambda: ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")), marks=pytest.mark.slow
        ),
    ],
    ids=["threads", "processes"],
)
def test_no_cell_is_taken_twice_by_workers_at_the_same_time(tmp_path: Path, pool: Callable[[], Executor]) -> None:
    group = Group(arm="a", point={}, content={}, rates=None)
    study = Study(title="", groups=[group], seeds=Seeds(report=list(range(CELLS))), baseline="a")
    StudyFolder(tmp_path).start(study, "rankwise study run")
    with pool() as workers:
        first, second = workers.map(claims, [tmp_path, tmp_path])
    assert len(first) + len(second) == CELLS
    assert len({*first, *second}) == CELLS


def test_a_running_worker_takes_cells_that_others_add_or_let_run_again(tmp_path: Path) -> None:
    def study(*arms: str) -> Study:
        groups = [Group(arm=arm, point={}, content={}, rates=None) for arm in arms]
        return Study(title="", groups=groups, seeds=Seeds(report=[1]), baseline="a")

    folder, other = StudyFolder(tmp_path), StudyFolder(tmp_path)
    folder.start(study("a"), "rankwise study run")
    with Queue(default_storage(tmp_path), "q") as queue:
        _, plan, first = take(folder, queue)
        assert first is not None
        folder.fail(plan.cells[0], "out of memory")
        queue.finish(first, math.inf)
        assert take(folder, queue)[2] is None
        other.start(study("a", "b"), "rankwise study run")
        _, plan, added = take(folder, queue)
        assert added is not None
        assert added.name in [cell.name for cell in plan.cells]
        other.forget_errors(other.planner())
        _, _, again = take(folder, queue)
        assert again is not None
        assert again.name == first.name


def test_a_worker_takes_cells_of_the_groups_that_it_was_asked_for_alone(tmp_path: Path) -> None:
    folder = started(tmp_path, two_arms())
    with Queue(default_storage(tmp_path), "q") as queue:
        taken = []
        while True:
            _, plan, claim = take(folder, queue, ["b*"])
            if claim is None:
                break
            taken.append(claim.name)
        assert [cell.group for cell in plan.cells] == ["b", "b"]
        assert sorted(taken) == sorted(cell.name for cell in plan.cells)
        assert sorted(name.partition("/")[0] for name in queue.names("WAITING")) == ["a", "a"]


def rename(path: Path, name: str, to: str) -> None:
    """Take a table of the queue away, or bring it back."""
    with closing(sqlite3.connect(path, timeout=60)) as connection, connection:
        connection.execute(f"ALTER TABLE {name} RENAME TO {to}")


@pytest.mark.slow
def test_a_storage_that_fails_for_a_moment_costs_no_cell_and_one_that_stays_away_does(tmp_path: Path) -> None:
    queue = Queue(default_storage(tmp_path), "q", heartbeat=1)
    queue.fill(["a"])
    claim = queue.claim()
    assert claim is not None
    told: list[bool] = []
    with queue.alive(claim, lambda: told.append(True)):
        rename(tmp_path / "queue.db", "trial_heartbeats", "gone")
        time.sleep(1.5)
        rename(tmp_path / "queue.db", "gone", "trial_heartbeats")
        time.sleep(2)
        queue.give_back_lost()
        assert queue.names("RUNNING") == ["a"]
        assert told == []
        rename(tmp_path / "queue.db", "trial_heartbeats", "gone")
        wait_for(lambda: bool(told), 2 * GRACE)
        with pytest.raises(
            StorageError, match=r"the study's storage failed .*trial_heartbeats.*the same command goes on"
        ):
            queue.give_back_lost()
        rename(tmp_path / "queue.db", "gone", "trial_heartbeats")


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


def test_a_driver_that_is_missing_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'rankwise\[postgres\]'"):
        Queue("mysql://somewhere/queue", "q")


@pytest.mark.parametrize("url", ["queue.db", "nosuch://somewhere/queue"])
def test_a_storage_that_can_not_be_opened_says_what_one_looks_like(url: str) -> None:
    with pytest.raises(ValueError, match="sqlite:///FILE or postgresql://USER@HOST/NAME"):
        Queue(url, "q")


@pytest.mark.parametrize("name", ["a study", "what?", "50%20", "x#y", "für"])
def test_the_queue_lies_in_its_folder_whatever_that_is_called(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    with Queue(default_storage(folder), "q") as queue:
        queue.fill(["a"])
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (folder / "queue.db").stat().st_size
