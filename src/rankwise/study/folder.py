"""The folder of a study: its plan, and a run folder for every cell, which are the truth about what has finished."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import ValidationError

from rankwise.errors import check_choice
from rankwise.files import read_json_object, write_json_atomic, write_text_atomic
from rankwise.runs.folder import RunFolder
from rankwise.runs.recipes.reading import flat
from rankwise.study.plan import Cell, Group, Plan, Planner, Study
from rankwise.study.race import Race

KINDS: dict[str, type[Study] | type[Race]] = {"study": Study, "race": Race}
REMEDY = "delete it and run the command again, which writes it; finished runs stay"


@dataclass
class StudyFolder:
    """The files of a study under ``root``.

    Args:
        root: The folder; machines that work on one study share it.
    """

    root: Path
    _losses: dict[str, float] = field(default_factory=dict)

    @property
    def plan_file(self) -> Path:
        """What is run, with every recipe written out, and the command."""
        return self.root / "study.json"

    def lock(self) -> FileLock:
        """Return the lock of what one process at a time may do: make the queue, fill it, give back lost cells."""
        self.root.mkdir(parents=True, exist_ok=True)
        return FileLock(self.root / ".lock")

    def run(self, cell: Cell) -> RunFolder:
        """Return the run folder of a cell."""
        return RunFolder((self.root / cell.name).absolute())

    def error_file(self, cell: Cell) -> Path:
        """Return where the error of a failed cell is kept."""
        return self.run(cell).root / "error.txt"

    def start(self, planner: Planner, command: str) -> None:
        """Write what is run; call it under the lock.

        Raises:
            ValueError: The folder has cells of another study, or the file that says of which is damaged.
        """
        content = json.loads(planner.model_dump_json())
        queue = f"{self.root.absolute().name}-{uuid.uuid4().hex[:12]}"
        if self.plan_file.is_file():
            self._check_same(self.planner().groups, [Group.model_validate(each) for each in content["groups"]])
            queue = self.queue
        write_json_atomic(self.plan_file, {"queue": queue, "command": command, "plan": content})

    def _check_same(self, there: Sequence[Group], now: Sequence[Group]) -> None:
        """Refuse another recipe for a group of which a run has begun; what never ran may change."""
        before = {group.name: group for group in there}
        for group in now:
            other = before.get(group.name)
            if other is None or not any(self.root.glob(f"**/{group.name}/*/config.yaml")):
                continue
            old, new = flat(other.content), flat(group.content)
            for key in sorted(old.keys() | new.keys()):
                if old.get(key) != new.get(key):
                    raise ValueError(
                        f"{self.root} has runs of {group.name} with {key}={old.get(key)!r}, and it is "
                        f"{new.get(key)!r} now. Arms, values of axes, rates and seeds may be added; for other "
                        "recipes give another --out"
                    )

    def _read(self) -> dict[str, Any]:
        if not self.plan_file.is_file():
            raise FileNotFoundError(f"{self.root} holds no study: {self.plan_file.name} is missing")
        content = read_json_object(self.plan_file, REMEDY)
        missing = sorted({"queue", "command", "plan"} - content.keys())
        plan = content.get("plan")
        if not missing and not (isinstance(plan, dict) and isinstance(plan.get("groups"), list)):
            missing = ["plan.groups"]
        if missing:
            raise ValueError(f"{self.plan_file} is damaged, {missing[0]} is missing: {REMEDY}")
        return content

    def planner(self) -> Study | Race:
        """Return what is run here.

        Raises:
            FileNotFoundError: There is no study.
            ValueError: The file is damaged.
        """
        plan = self._read()["plan"]
        check_choice(f"{self.plan_file}: kind", plan.get("kind"), KINDS)
        try:
            return KINDS[plan["kind"]].model_validate(plan)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise ValueError(
                f"{self.plan_file} is damaged, plan.{where}: {error.errors()[0]['msg']}: {REMEDY}"
            ) from error

    @property
    def queue(self) -> str:
        """The name of the queue in its storage."""
        return str(self._read()["queue"])

    @property
    def command(self) -> str:
        """The command that was given last."""
        return str(self._read()["command"])

    def plan(self, planner: Planner) -> Plan:
        """Return the cells known by now, reading what has finished since the last call; what failed may run again."""
        self._losses = {name: loss for name, loss in self._losses.items() if math.isfinite(loss)}
        while True:
            plan = planner.plan(self._losses)
            fresh = {
                cell.name: loss
                for cell in plan.cells
                if cell.name not in self._losses and (loss := self.loss(cell)) is not None
            }
            if not fresh:
                return plan
            self._losses |= fresh

    def loss(self, cell: Cell) -> float | None:
        """Return the dev loss of a cell (without a dev split another's), infinity where it failed, none before."""
        run = self.run(cell)
        if not run.finished:
            return math.inf if self.error_file(cell).is_file() else None
        splits = [split for split in selected(run.figures(), cell).values() if isinstance(split, dict) and split]
        loss = float(splits[0]["loss"])  # dev is the first
        return loss if math.isfinite(loss) else math.inf

    def fail(self, cell: Cell, error: str) -> None:
        """Keep the error of a cell."""
        write_text_atomic(self.error_file(cell), error)

    def forget_errors(self, planner: Planner, only: Sequence[str] = ()) -> list[str]:
        """Let failed cells, of the groups asked for, be run again, and return their names."""
        failed = [cell for cell in self.plan(planner).of(only).cells if self.error_file(cell).is_file()]
        for cell in failed:
            self.error_file(cell).unlink()
        self._losses.clear()
        return [cell.name for cell in failed]


def selected(figures: dict[str, Any], cell: Cell) -> dict[str, Any]:
    """Return the figures of the checkpoint that a cell's recipe selects."""
    which = "last" if cell.content.get("select") == "last" else "dev_selected"
    return dict(figures["metrics"][which])
