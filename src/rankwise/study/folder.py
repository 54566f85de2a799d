"""The folder of a study: its plan, and a run folder for every cell, which are the truth about what has finished."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import ValidationError

from rankwise.errors import check_choice
from rankwise.files import read_json_object, write_json_atomic, write_text_atomic
from rankwise.runs.folder import LENGTH, MAY_CHANGE, RunFolder
from rankwise.runs.recipes.methods import as_kept
from rankwise.runs.recipes.reading import Section, flat
from rankwise.runs.recipes.recipe import parse_recipe
from rankwise.study.plan import Cell, Group, Plan, Planner, Study
from rankwise.study.race import Race

KINDS: dict[str, type[Study] | type[Race]] = {"study": Study, "race": Race}
REMEDY = "delete it and run the command again, which writes it; finished runs stay"
# What the runs of a group may have otherwise than its recipe: the study says the seed, a longer run is another result.
FREE = {"seed", *MAY_CHANGE} - set(LENGTH)


@dataclass
class StudyFolder:
    """The files of a study under ``root``.

    Args:
        root: The folder; machines that work on one study share it.
        lenient: Take runs that report no split for failed, so that something can be said of the others.
    """

    root: Path
    lenient: bool = False
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
        groups = [Group.model_validate(each) for each in content["groups"]]
        before: dict[str, Group] = {}
        if self.plan_file.is_file():
            there = self.planner()
            before = {group.name: group for group in there.groups}
            self._check_kind(there, planner)
            self._check_shared(before, groups)
            queue = self.queue
        self._check_same(before, groups, planner)
        write_json_atomic(self.plan_file, {"queue": queue, "command": command, "plan": content})

    def _begun(self, group: str) -> RunFolder | None:
        """Return one of a group's runs that have begun, if any has."""
        places = [path for above in ("", "*/") for path in self.root.glob(f"{above}{group}/*/config.yaml")]
        return RunFolder(min(places).parent) if places else None

    def _check_kind(self, there: Planner, now: Planner) -> None:
        """Refuse a study in a race's folder, and a race in a study's."""
        kinds = [type(each).__name__.lower() for each in (there, now)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"{self.root} holds a {kinds[0]}, and this is a {kinds[1]}: give another --out")

    def _check_shared(self, before: Collection[str], now: Sequence[Group]) -> None:
        """Refuse a plan without any of the groups that have runs: it is another one, and would replace theirs."""
        ran = [name for name in before if self._begun(name) is not None]
        if ran and not set(ran) & {group.name for group in now}:
            raise ValueError(
                f"{self.root} has runs of {', '.join(ran)}, and there is none of these now "
                f"({', '.join(group.name for group in now)}): give another --out, or keep one of them"
            )

    def _check_same(self, before: Mapping[str, Group], now: Sequence[Group], planner: Planner) -> None:
        """Refuse another recipe for a group of which a run has begun; what never ran may change."""
        for group in now:
            run = self._begun(group.name)
            if run is None:
                continue
            other = before.get(group.name)
            if other is not None:
                changes = _changes(other.content, group.content, ())
            else:  # it was left out for a while, or the plan was deleted: the run says what it was
                free = FREE if "-rate-own-" in run.root.name else {*FREE, "training.learning_rate"}
                given = parse_recipe(planner.recipe_in(group, run.root.relative_to(self.root).parts[0]))
                changes = _changes(run.recipe().to_dict(), given.to_dict(), free)
            if changes:
                key, old, new = changes[0]
                raise ValueError(
                    f"{self.root} has runs of {group.name} with {key}={old!r}, and it is {new!r} now. Arms, values of "
                    "axes, rates and seeds may be added; for other recipes give another --out"
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
        groups = [
            {**each, "content": as_kept(each.get("content"))} if isinstance(each, dict) else each
            for each in plan["groups"]
        ]
        try:
            return KINDS[plan["kind"]].model_validate({**plan, "groups": groups})
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
        """Return the dev loss of a cell (without a dev split another's), infinity where it failed, none before.

        Raises:
            ValueError: It reports no split, or its figures are damaged.
        """
        run = self.run(cell)
        if not run.finished:
            return math.inf if self.error_file(cell).is_file() else None
        splits = self._splits(cell)
        if not splits and not self.lenient:
            raise ValueError(
                f"{run.metrics} has no figures of any split, so there is no loss to go by: give the recipes one "
                "(data.dev_fraction, data.validation_fraction or data.validation_file) and another --out"
            )
        loss = float(splits[0]["loss"]) if splits else math.inf  # dev is the first
        return loss if math.isfinite(loss) else math.inf

    def _splits(self, cell: Cell) -> list[dict[str, Any]]:
        figures = selected(self.run(cell).figures(), cell)
        return [split for split in figures.values() if isinstance(split, dict) and split]

    def without_figures(self, plan: Plan) -> list[str]:
        """Return the cells that have finished and report no split."""
        return [cell.name for cell in plan.cells if self.run(cell).finished and not self._splits(cell)]

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


def _changes(old: Section, new: Section, free: Collection[str]) -> list[tuple[str, Any, Any]]:
    """Return where a recipe differs from another: the key, what it was and what it is."""
    before, now = flat(old), flat(new)
    keys = sorted((before.keys() | now.keys()) - set(free))
    return [(key, before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)]


def selected(figures: dict[str, Any], cell: Cell) -> dict[str, Any]:
    """Return the figures of the checkpoint that a cell's recipe selects."""
    which = "last" if cell.content.get("select") == "last" else "dev_selected"
    return dict(figures["metrics"][which])
