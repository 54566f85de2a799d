"""Which cells a study has, as far as what has finished tells; a pure function of the study and of those results."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rankwise.runs.recipes.reading import Section, merged
from rankwise.runs.recipes.recipe import Spec
from rankwise.study.grid import LARGEST_GROWTH, Rates, at_edge, lowest

LARGEST_SEED = 2**32 - 1  # numpy takes none above
Found = Mapping[str, float]
"""The dev loss of each cell that has finished, by its name; infinity where it failed or is no number."""


class Cell(NamedTuple):
    """One run.

    Args:
        name: Of its folder, below the study's.
        group: The name of the group it belongs to.
        content: Its recipe.
        rate: Its learning rate.
        seed: Its seed.
        role: ``choose`` where a rate is chosen with it, ``report`` where the figures are from it.
    """

    name: str
    group: str
    content: Section
    rate: float | None
    seed: int
    role: str


class Plan(NamedTuple):
    """The cells that are known by now, those that are to be run first in front, and what there is to say."""

    cells: list[Cell]
    notes: list[str]

    def of(self, only: Sequence[str]) -> Plan:
        """Return the plan of the groups whose name fits one of the patterns; without any, all of it."""
        return self._replace(cells=[cell for cell in self.cells if fits(cell.group, only)])


class Planner(Protocol):
    """What a folder of cells is run by."""

    @property
    def groups(self) -> list[Group]:
        """What has cells."""

    def plan(self, found: Found) -> Plan:
        """Return every cell known by now, given the results so far."""

    def recipe_in(self, group: Group, folder: str) -> Section:
        """Return the recipe of a group's runs below a folder of the study's, but for rate and seed."""

    def model_dump_json(self) -> str:
        """Return all of it as JSON."""


class Seeds(Spec):
    """Seeds that rates are chosen with, and others that the figures are from."""

    choose: list[int] = Field(default_factory=list)
    report: list[int] = Field(min_length=1)

    @model_validator(mode="after")
    def _are_fresh(self) -> Seeds:
        both = sorted(set(self.choose) & set(self.report))
        if both:
            raise ValueError(
                f"seeds {both} are in `choose` and in `report`: a rate chosen with a seed is biased towards it, so "
                "report others"
            )
        for name in ("choose", "report"):
            wrong = [seed for seed in getattr(self, name) if not 0 <= seed <= LARGEST_SEED]
            if wrong:
                raise ValueError(f"seeds.{name} has {wrong[0]}: a seed is a whole number from 0 to {LARGEST_SEED}")
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"seeds.{name} has a seed twice: {getattr(self, name)}")
        return self


class Group(BaseModel):
    """An arm at one point of the axes: what differs in rate and seed only.

    Args:
        arm: The arm's name.
        point: The label of each axis.
        content: The recipe.
        rates: Where its rate is chosen from; none takes the recipe's.
    """

    model_config = ConfigDict(frozen=True)

    arm: str
    point: dict[str, str]
    content: dict[str, Any]
    rates: Rates | None

    @property
    def name(self) -> str:
        """The folder of its cells."""
        return "-".join(slug(part) for part in (self.arm, *self.point.values()))

    def cell(self, rate: float | None, seed: int, role: str) -> Cell:
        """Return the run at a rate (none: the recipe's) with a seed."""
        over: Section = {"seed": seed} | ({} if rate is None else {"training": {"learning_rate": rate}})
        label = "own" if rate is None else f"{rate:g}"
        name = f"{self.name}/{role}-rate-{label}-seed-{seed}"  # a run that chose has not seen what a report is about
        return Cell(name, self.name, merged(self.content, over), rate, seed, role)


def fits(group: str, only: Sequence[str]) -> bool:
    """Return whether a group's name fits one of the patterns (``*`` stands for anything), or none are given."""
    return not only or any(fnmatchcase(group, pattern) for pattern in only)


def slug(text: str) -> str:
    """Return a text as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9.,+=_]+", "_", text).strip("_.") or "_"


class Study(BaseModel):
    """Groups of cells, their seeds, and what the arms are compared with; made by ``load_study``."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["study"] = "study"
    title: str
    groups: list[Group]
    seeds: Seeds
    baseline: str

    @model_validator(mode="after")
    def _names_differ(self) -> Study:
        seen: dict[str, Group] = {}
        for group in self.groups:
            other = seen.setdefault(group.name, group)
            if other is not group:
                raise ValueError(
                    f"arms.{other.arm} and arms.{group.arm} would write to the same folder ({group.name}): rename one"
                )
        return self

    def recipe_in(self, group: Group, folder: str) -> Section:
        """Return the recipe of a group's runs, but for rate and seed."""
        return group.content

    def plan(self, found: Found) -> Plan:
        """Return the cells known by now: those that choose rates first, of all groups, then the report's."""
        chosen = [choose(group, self.seeds.choose, found) for group in self.groups]
        first = [cell for each in chosen for cell in each.cells]
        then = [
            group.cell(each.rate, seed, "report")
            for group, each in zip(self.groups, chosen, strict=True)
            if each.settled
            for seed in self.seeds.report
        ]
        return Plan([*first, *then], [note for each in chosen for note in each.notes])


class Choice(NamedTuple):
    """How far the choice of a group's rate is; ``rate`` counts once it is settled."""

    cells: list[Cell]
    rate: float | None
    settled: bool
    notes: list[str]


def choose(group: Group, seeds: Sequence[int], found: Found) -> Choice:
    """Return a group's cells for the choice of its rate, and the rate once they have all finished.

    The rate has the lowest mean dev loss over the seeds. While that one is the edge of the grid, the grid grows there
    by its factor, at most ``LARGEST_GROWTH`` steps: a minimum that was not passed is none.
    """
    if group.rates is None:
        return Choice([], None, True, [])
    growth = {-1: 0, 1: 0}
    notes: list[str] = []
    while True:
        grid = group.rates.grid(growth[-1], growth[1])
        cells = {rate: [group.cell(rate, seed, "choose") for seed in seeds] for rate in grid}
        flat = [cell for own in cells.values() for cell in own]
        if any(cell.name not in found for cell in flat):
            return Choice(flat, None, False, notes)
        means = {rate: math.fsum(found[cell.name] for cell in own) / len(own) for rate, own in cells.items()}
        best = lowest(means)
        if best is None:
            return Choice(flat, None, False, [*notes, f"{group.name}: no rate gave a loss that is a number"])
        edge = at_edge(best, grid)
        if edge == 0:
            beside = grid.index(best)
            lost = [rate for rate in (grid[beside - 1], grid[beside + 1]) if not math.isfinite(means[rate])]
            if lost:
                rates = " and ".join(f"{rate:g}" for rate in lost)
                notes.append(
                    f"{group.name}: {best:g} is the best rate, but {rates} beside it failed or had no finite loss"
                )
            return Choice(flat, best, True, notes)
        if growth[edge] == LARGEST_GROWTH:
            return Choice(flat, None, False, [*notes, f"{group.name}: {best:g} is still the best rate, and the edge"])
        growth[edge] += 1
        side = "below" if edge < 0 else "above"
        notes.append(f"{group.name}: {best:g} was the best rate and the edge of the grid, which grew by one {side}")
