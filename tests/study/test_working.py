"""Studies that run: cells, errors, resuming, and workers that are killed, through the command line."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.study.conftest import Write
from typer.testing import CliRunner, Result

from rankwise.runs.recipes.recipe import parse_recipe
from rankwise.runs.training.train import train
from rankwise.study.folder import StudyFolder
from rankwise.study.queue import Queue, default_storage
from rankwise.study.spec import load_study
from rankwise.study.working import DEVICES, Work, device_of, load_data, run_cell, work
from rankwise_cli import app


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


ONE_ARM: dict[str, Any] = {"arms": {"four": {}}, "rates": None, "seeds": {"report": [1]}}


@pytest.mark.slow
def test_rates_are_chosen_without_the_reported_split_and_reported_with_fresh_seeds(
    write: Write, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = call("study", "run", write(arms={"four": {}}, rates={"from": 1e-3, "to": 1e-2, "factor": 3}), "--out", out)
    assert done.exit_code == 0, done.output
    folder = StudyFolder(out)
    cells = folder.plan(folder.planner()).cells
    chosen = {cell.rate for cell in cells if cell.role == "report"}
    grid = sorted({cell.rate for cell in cells if cell.role == "choose" and cell.rate})
    assert len(chosen) == 1
    assert grid[0] < next(iter(chosen)) < grid[-1]  # type: ignore[operator]
    assert {cell.seed for cell in cells if cell.role == "report"} == {10, 11}
    for cell in cells:
        splits = folder.run(cell).figures()["metrics"]["last"]
        assert ("validation" in splits) == (cell.role == "report")


def test_data_without_a_split_to_report_fails_the_runs_that_choose(write: Write, tmp_path: Path) -> None:
    """A folder of a benchmark's files says so only when it is read."""
    study = load_study(write())
    folder = StudyFolder(tmp_path / "study")
    folder.start(study, "rankwise study run")
    cell = next(cell for cell in folder.plan(study).cells if cell.role == "choose")
    room = Path(cell.content["data"]["data_dir"]) / "mrpc"
    for file in room.glob("validation*"):
        file.unlink()
    run_cell(folder, cell)
    assert "no other split: give data.validation_fraction=0.1" in folder.error_file(cell).read_text()


def long_study(write: Write) -> Path:
    """A study of four cells that take some seconds each, with checkpoints on the way."""
    return write(
        arms={"four": {"training": {"max_steps": 80, "evaluate": "steps", "every": 5}}, "two": {"method.r": 2}},
        set={"training": {"max_steps": 10, "evaluate": "steps", "every": 5}},
        rates=None,
        seeds={"report": [1, 2]},
    )


def start(study: Path, out: Path, storage: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "rankwise_cli", "study", "run", str(study), "--out", str(out)]
    return subprocess.Popen(
        [*command, "--heartbeat", "1"],
        env={**os.environ, "RANKWISE_STORAGE": storage, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
    )


def kill_one_of_two(study: Path, out: Path, storage: str) -> None:
    """Start two workers, kill the first in the middle of a cell; nothing is lost, nothing is run twice."""
    first = start(study, out, storage)
    second = None
    try:
        end = time.monotonic() + 120
        while not list(out.glob("*/*/checkpoints/checkpoint-*/rankwise_run.json")):
            assert time.monotonic() < end, "no checkpoint came"
            assert first.poll() is None
            time.sleep(0.05)
        second = start(study, out, storage)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        (held,) = [
            path.parents[0] for path in out.glob("*/*/checkpoints") if not (path.parent / "metrics.json").exists()
        ]
        assert second.wait(timeout=300) == 0
    finally:
        for process in (first, second):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
    folder = StudyFolder(out)
    cells = {cell.name: cell for cell in folder.plan(folder.planner()).cells}
    assert len(cells) == 4
    with Queue(storage, folder.queue) as queue:
        assert Counter(queue.names("COMPLETE")) == Counter(list(cells))
        assert queue.names("FAIL") == [held.relative_to(out).as_posix()]
        assert queue.names("WAITING", "RUNNING") == []
        cell = cells[queue.names("FAIL")[0]]
    recipe = parse_recipe(cell.content)
    whole = train(recipe, out.with_name("whole"), data=load_data(recipe)).metrics
    assert folder.run(cell).figures()["metrics"] == whole["metrics"]  # bit for bit as if nobody had been killed


@pytest.mark.slow
def test_a_killed_workers_cell_is_taken_over(write: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kill_one_of_two(long_study(write), out, default_storage(out))


def postgres_programs() -> Path | None:
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((place for place in reversed(places) if (place / "initdb").is_file()), None)


@pytest.fixture
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server of our own, on a socket in a folder of its own."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="comes with the extra 'postgres'")
    owner: dict[str, Any] = {"user": "nobody"} if os.geteuid() == 0 else {}  # it refuses to run as root
    room = Path(tempfile.mkdtemp(prefix="rankwise-pg-"))
    if owner:
        shutil.chown(room, "nobody")
    data = room / "data"
    told: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "cwd": room, **owner}
    try:
        subprocess.run([programs / "initdb", "-D", data, "-A", "trust", "-U", "rankwise", "-N"], **told)
        control = [str(programs / "pg_ctl"), "-D", str(data), "-w"]
        options = f"-k {room} -c listen_addresses='' -c fsync=off"
        subprocess.run([*control, "-l", str(room / "log"), "-o", options, "start"], **told)
        try:
            yield f"postgresql://rankwise@/postgres?host={room}"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **told)
    finally:
        shutil.rmtree(room, ignore_errors=True)


@pytest.mark.slow
def test_a_killed_workers_cell_is_taken_over_through_postgresql(write: Write, tmp_path: Path, postgres: str) -> None:
    kill_one_of_two(long_study(write), tmp_path / "out", postgres)


@pytest.mark.slow
def test_two_workers_of_one_command_share_the_cells(write: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = call("study", "run", write(**{**ONE_ARM, "seeds": {"report": [1, 2, 3, 4]}}), "--out", out, "--workers", 2)
    assert done.exit_code == 0, done.output
    folder = StudyFolder(out)
    names = Counter(cell.name for cell in folder.plan(folder.planner()).cells)
    with Queue(default_storage(out), folder.queue) as queue:
        assert Counter(queue.names("COMPLETE")) == names


@pytest.mark.slow
def test_a_stopped_worker_puts_its_cell_back(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a training: the next worker need not wait for the heartbeat."""
    out = tmp_path / "out"
    study = write(**ONE_ARM)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it
    stop = threading_interrupt(out)
    done = call("study", "run", study, "--out", out, *LONG)
    stop()
    signal.signal(signal.SIGINT, before)
    assert done.exit_code == 130, done.output
    assert "the same command goes on" in done.output
    assert "--resume" not in done.output
    with Queue(default_storage(out), StudyFolder(out).queue) as queue:
        assert queue.names("WAITING") == ["four/report-rate-own-seed-1"]
        assert queue.names("RUNNING", "FAIL", "COMPLETE") == []


LONG = [word for field in ("max_steps=4000", "evaluate=steps", "every=5") for word in ("--set", f"training.{field}")]


def threading_interrupt(out: Path) -> Any:
    """Interrupt this process once the first run has begun; the returned function ends that.

    Python drops an interrupt that comes while it runs a finalizer: if training goes on, it is interrupted again.
    """
    import threading

    over = threading.Event()

    def newest() -> int:
        files = out.glob("*/*/checkpoints/checkpoint-*/rankwise_run.json")
        return max((int(file.parent.name.partition("-")[2]) for file in files), default=0)

    def wait() -> None:
        end, seen = time.monotonic() + 120, 0
        while not over.wait(0.05) and time.monotonic() < end:
            if newest() > seen:
                seen = newest() + 50
                os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()

    def stop() -> None:
        over.set()
        thread.join()

    return stop


def test_a_worker_is_shown_its_accelerator_before_it_imports_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEVICES, "3,5")
    seen = []
    for number in range(3):
        with device_of(number):
            seen.append(os.environ[DEVICES])
    assert seen == ["3", "5", "3"]
    assert os.environ[DEVICES] == "3,5"
    monkeypatch.setenv(DEVICES, "")
    with device_of(0):
        assert os.environ[DEVICES] == ""


def test_work_ends_where_nothing_is_left(write: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call("study", "run", write(**ONE_ARM), "--out", out).exit_code == 0
    work(Work(out))  # returns at once
