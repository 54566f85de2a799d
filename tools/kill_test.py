"""Kills training runs at every kind of bad moment, resumes them, and compares with the run that was never killed.

    python tools/kill_test.py                  # 20 kills for each method
    python tools/kill_test.py --every          # one kill at every file operation of the run

Two runs on a tiny random model: dynamic HeteroLoRA with shortcuts, and LoR2C with a merge and an injection (IMLoR2C).
Each trial is a process that trains and kills itself (SIGKILL) before its n-th file operation in the run folder: a file
opened for writing, renamed, deleted, a folder made or removed, and half way through a file of tensors; or it is killed
from outside at a random time. Then the run is resumed, and its adapter must be the uninterrupted run's bit for bit, so
must its figures and its history, but for seconds.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # children are forked: no thread may be running in the parent

import peft.peft_model
import torch

import rankwise.search.checkpoint
from rankwise.runs.dryrun import stand_in
from rankwise.runs.recipes.recipe import Recipe, parse_recipe
from rankwise.runs.training.train import train

NOT_KILLED = "not killed"
METHODS: dict[str, dict[str, Any]] = {
    "heterolora with shortcuts": {
        "name": "heterolora",
        "mode": "dynamic",
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.1,
        "target_modules": ["query", "value"],
        "shortcuts": ["res1", "res2", "in", "cut"],
        "budget": 0.5,
        "search_every": 3,
        "score_batches": 2,
    },
    "imlor2c": {
        "name": "lor2c",
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.1,
        "merges": 1,
        "injections": 1,
        "edit_unit": "steps",
    },
}
STEPS = 8
TRAINING = {"max_steps": STEPS, "evaluate": "steps", "every": 2, "report_to": [], "learning_rate": 1e-2, "warmup": 0}
EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
TIMES = ("seconds", "tap_seconds", "command")  # what may differ


def recipe(method: str, room: Path) -> Recipe:
    """Return the recipe of a run, on a stand-in model in ``room``."""
    content: dict[str, Any] = {
        "model": {"name": "FacebookAI/roberta-base", "dropout": 0.1},
        "data": {"task": "mrpc"},
        "method": METHODS[method],
    }
    small = stand_in(parse_recipe(content), room).to_dict()
    small["training"] |= TRAINING
    return parse_recipe(small)


def kill() -> None:
    """End this process as a power cut would: nothing is flushed, no handler runs."""
    os.kill(os.getpid(), signal.SIGKILL)


class Saboteur:
    """Counts the file operations below a folder, and kills the process before one of them.

    Args:
        root: The folder.
        at: Number of the operation; none counts only.
    """

    def __init__(self, root: Path, at: int | None) -> None:
        self.root, self.at = str(root), at
        self.seen: list[str] = []

    def install(self) -> None:
        """Watch Python's file operations, and the writers of tensors, which open their files by themselves."""
        sys.addaudithook(self.audit)
        pickles: Any = torch
        adapters: Any = peft.peft_model
        sums: Any = rankwise.search.checkpoint
        pickles.save = self.halved(pickles.save)
        adapters.safe_save_file = self.halved(adapters.safe_save_file)
        sums.save_file = self.halved(sums.save_file)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        """Note an event; see ``sys.addaudithook``."""
        written = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if written or event in EVENTS:
            self.note(event, args[0])

    def note(self, event: str, path: Any) -> None:
        """Count an operation, and die before it if it is the one."""
        if not isinstance(path, (str, os.PathLike)) or not str(path).startswith(self.root):
            return
        if len(self.seen) == self.at:
            kill()
        self.seen.append(f"{event} {os.path.relpath(path, self.root)}")

    def halved(self, write: Callable[..., Any]) -> Callable[..., Any]:
        """Return a writer with two places to die at: before it opens the file, and when half of it is written."""

        def writer(content: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
            self.note("write", path)
            result = write(content, path, *args, **kwargs)
            if len(self.seen) == self.at and str(path).startswith(self.root):
                os.truncate(path, os.path.getsize(path) // 2)
            self.note("half", path)
            return result

        return writer


def child(work: Callable[[], object], *, after: float | None = None) -> int:
    """Do ``work`` in a forked process and return its exit status; kill it ``after`` so many seconds."""
    process = os.fork()
    if process == 0:
        faulthandler.disable()
        try:
            work()
        except BaseException as error:  # noqa: BLE001 (whatever it was, the parent is told)
            print(f"  {type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def start(made: Recipe, out: Path, at: int | None = None, report: Path | None = None) -> None:
    """Train in this process, watched; write down the operations seen."""
    saboteur = Saboteur(out, at)
    saboteur.install()
    train(made, out)
    if report is not None:
        report.write_text(json.dumps(saboteur.seen))


def timeless(value: Any) -> Any:
    """Return a JSON value without what measures time."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key not in TIMES}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def outcome(out: Path) -> dict[str, Any]:
    """Return what must be the same in both runs."""
    lines = {
        name: [timeless(json.loads(line)) for line in (out / name).read_text().splitlines()]
        for name in ("search_history.jsonl", "spectra.jsonl")
        if (out / name).exists()
    }
    weights = (out / "adapter" / "adapter_model.safetensors").read_bytes()
    return {"adapter": weights, "metrics": timeless(json.loads((out / "metrics.json").read_text())), **lines}


def trial(made: Recipe, out: Path, expected: dict[str, Any], *, at: int | None, after: float | None) -> str:
    """Kill one run, resume it, and say in a word how it ended: ``same`` is right, ``not killed`` tells nothing."""
    code = child(lambda: start(made, out, at), after=after)
    if code == 0:
        return NOT_KILLED
    if code != -signal.SIGKILL:
        return f"failed before the kill ({code})"
    begun = (out / "config.yaml").exists()
    if child(lambda: train(made, out, resume=begun)) != 0:
        return "could not be resumed"
    found = outcome(out)
    differing = [name for name in expected if found.get(name) != expected[name]]
    return f"differs in {', '.join(differing)}" if differing else "same"


def kills_of(method: str, count: int, *, every: bool, room: Path, draw: random.Random) -> tuple[int, int]:
    """Kill one method's run so many times; return how many ended as they should, and how many there were."""
    made = recipe(method, room / "stand-in")
    whole, seen = room / "whole", room / "operations.json"
    began = time.perf_counter()
    if child(lambda: start(made, whole, report=seen)) != 0:
        raise RuntimeError(f"{method}: the run that is not to be killed failed")
    seconds, expected = time.perf_counter() - began, outcome(whole)
    operations: list[str] = json.loads(seen.read_text())
    saves = [number for number, name in enumerate(operations) if "checkpoint" in name]
    timed = 0 if every else max(count // 4, 1)
    plan: list[tuple[int | None, float | None]] = [(None, draw.uniform(0.1, seconds)) for _ in range(timed)]
    at = range(len(operations)) if every else sorted(draw.sample(saves, min(count - timed, len(saves))))
    plan += [(number, None) for number in at]
    good = 0
    for number, (operation, after) in enumerate(plan, start=1):
        out = room / "killed"
        word = trial(made, out, expected, at=operation, after=after)
        while word == NOT_KILLED and after is not None:  # it was faster than the one that was timed
            shutil.rmtree(out)
            after *= 0.7
            word = trial(made, out, expected, at=None, after=after)
        when = f"after {after:.2f} s" if operation is None else f"before operation {operation}: {operations[operation]}"
        print(f"{method}, kill {number} of {len(plan)}, {when}: {word}", flush=True)
        good += word == "same"
        shutil.rmtree(out)
    return good, len(plan)


def main() -> int:
    """Run the test; the exit code says whether every run ended as if it had not been killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="for each method")
    parser.add_argument("--every", action="store_true", help="one kill at every file operation, in place of a number")
    parser.add_argument("--method", choices=sorted(METHODS), help="only this one")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    asked = parser.parse_args()
    draw, totals = random.Random(asked.seed), []
    for method in [asked.method] if asked.method else METHODS:
        with tempfile.TemporaryDirectory() as room:
            totals.append(kills_of(method, asked.kills, every=asked.every, room=Path(room).resolve(), draw=draw))
    good, total = (sum(column) for column in zip(*totals, strict=True))
    print(f"{good} of {total} killed runs ended as the one that was not killed")
    return 0 if good == total else 1


if __name__ == "__main__":
    sys.exit(main())
