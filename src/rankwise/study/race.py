"""Successive halving over arms and rates by the dev loss; a pure function of what has finished, as every plan here."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from rankwise.runs.recipes.reading import Section, merged
from rankwise.study.grid import at_edge
from rankwise.study.plan import Cell, Found, Group, Plan

KEEP = 3  # one in three goes on, three times as long
FINALISTS = 3
LEAST_STEPS = 10  # a shorter run than that says nothing
STEPS = "-steps"  # how the name of a round's folder ends
SHORT: Section = {"training": {"evaluate": "never", "every": None}, "select": "last"}
Candidate = tuple[int, float]
"""An arm by its place, and a rate."""


class Rung(BaseModel):
    """A round of the race: how many candidates run, and for how many steps."""

    model_config = ConfigDict(frozen=True)

    candidates: int
    steps: int


class Standing(NamedTuple):
    """How far a race is.

    Args:
        rounds: Of each round that has begun, its candidates and their cells.
        winner: The candidate with the lowest dev loss in the last round, once it is over.
        rival: What the winner is run against.
        confirm: The winner's cells and the rival's with fresh seeds.
        notes: What there is to say.
    """

    rounds: list[dict[Candidate, Cell]]
    winner: Candidate | None
    rival: Candidate | None
    confirm: dict[Candidate, list[Cell]]
    notes: list[str]


class Race(BaseModel):
    """Arms and their rates, run for longer and longer, ever fewer of them; then the winner anew beside the default.

    Every candidate of a round starts from the beginning with the same seed, so the same batches, and with a schedule of
    the round's length: it is compared when its rate has come down. The default's best candidate stays to the end
    whatever its place, so that what the winner is run against has a tuned rate too.

    Args:
        groups: The arms; each has its rates.
        rungs: The rounds.
        default: The arm that the winner is compared with.
        yours: The arm that the winner is compared with where the default itself wins: the recipe as it came. Where it
            has no rates it is another arm's method, and runs the rounds as that one.
        seed: Of the race.
        confirm: Fresh seeds for the winner and its rival, at full length.
        full: The steps of a whole run.
        asked: The recipe and the wish that it was made for.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["race"] = "race"
    groups: list[Group]
    rungs: list[Rung]
    default: str
    yours: str
    seed: int
    confirm: list[int]
    full: int
    asked: dict[str, Any] = Field(default_factory=dict)

    @property
    def cost(self) -> float:
        """The most that the rounds can cost, in whole runs."""
        return sum(rung.candidates * rung.steps for rung in self.rungs) / self.full

    def plan(self, found: Found) -> Plan:
        """Return the cells known by now."""
        standing = self.standing(found)
        race = [cell for own in standing.rounds for cell in own.values()]
        return Plan([*race, *(cell for own in standing.confirm.values() for cell in own)], standing.notes)

    def standing(self, found: Found) -> Standing:
        """Return how far the race is, given the dev losses so far."""
        alive: list[Candidate] = [
            (place, rate) for place, group in enumerate(self.groups) if group.rates for rate in group.rates.grid()
        ]
        rounds: list[dict[Candidate, Cell]] = []
        for number, rung in enumerate(self.rungs):
            rounds.append({candidate: self._short(candidate, rung.steps) for candidate in alive})
            if any(cell.name not in found for cell in rounds[-1].values()):
                return Standing(rounds, None, None, {}, [])
            losses = {candidate: found[cell.name] for candidate, cell in rounds[-1].items()}
            order = sorted(
                (each for each in losses if math.isfinite(losses[each])), key=lambda each: (losses[each], each)
            )
            if not order:
                return Standing(rounds, None, None, {}, ["no candidate has a loss that is a number"])
            if number + 1 < len(self.rungs):
                alive = self._best(order, self.rungs[number + 1].candidates)
        return self._end(rounds, order)

    def _best(self, order: Sequence[Candidate], count: int) -> list[Candidate]:
        """Return the first so many; the last of them makes room for the default's best if that is not among them."""
        best = list(order[:count])
        own = self._of_default(order)
        return best if own is None or own in best else [*best[: count - 1], own]

    def _of_default(self, order: Sequence[Candidate]) -> Candidate | None:
        return next((each for each in order if self.groups[each[0]].arm == self.default), None)

    def _end(self, rounds: list[dict[Candidate, Cell]], order: Sequence[Candidate]) -> Standing:
        winner, tuned = order[0], self._of_default(order)
        rival = tuned if tuned not in (None, winner) else self._as_it_came()
        if rival is not None and self._is_twin(rival, winner):
            rival = winner
        pair = [winner] if rival is None or rival == winner else [winner, rival]
        confirm = {each: [self._whole(each, seed) for seed in self.confirm] for each in pair}
        return Standing(rounds, winner, rival, confirm, self._edges(pair))

    def _is_twin(self, rival: Candidate, winner: Candidate) -> bool:
        """Return whether the recipe as it came, which ran the rounds as another arm, is the winner itself."""
        ours = self.groups[rival[0]].rates is None
        return ours and self._whole(rival, self.seed).content == self._whole(winner, self.seed).content

    def _as_it_came(self) -> Candidate | None:
        for place, group in enumerate(self.groups):
            if group.arm == self.yours:
                return place, float(f"{group.content['training']['learning_rate']:.4g}")
        return None

    def _edges(self, pair: Sequence[Candidate]) -> list[str]:
        notes = []
        for place, rate in pair:
            rates = self.groups[place].rates
            side = at_edge(rate, rates.grid()) if rates else 0
            if side:
                notes.append(
                    f"{self.groups[place].arm}: {rate:g} is the {'lowest' if side < 0 else 'highest'} rate that ran: a "
                    f"{'lower' if side < 0 else 'higher'} one may be better still"
                )
        return notes

    def recipe_in(self, group: Group, folder: str) -> Section:
        """Return the recipe of a group's runs below a folder of the race's, but for rate and seed."""
        steps, found, _ = folder.partition(STEPS)
        return shortened(group.content, int(steps), self.full) if found else group.content

    def _short(self, candidate: Candidate, steps: int) -> Cell:
        place, rate = candidate
        cell = self.groups[place].cell(rate, self.seed, "choose")
        return cell._replace(name=f"{steps}{STEPS}/{cell.name}", content=shortened(cell.content, steps, self.full))

    def _whole(self, candidate: Candidate, seed: int) -> Cell:
        place, rate = candidate
        cell = self.groups[place].cell(rate, seed, "report")
        return cell._replace(name=f"whole/{cell.name}")


def shortened(content: Section, steps: int, full: int) -> Section:
    """Return the recipe of a run in a round; what it says in steps of a whole run comes at the same part of the round.

    Args:
        content: The recipe.
        steps: Of the round.
        full: Of a whole run.
    """
    training: Section = {"max_steps": steps}
    warmup = (content.get("training") or {}).get("warmup", 0)
    if warmup >= 1:  # below that it is a part already
        training["warmup"] = warmup / full if warmup < full else steps
    method = _scaled(content.get("method") or {}, steps, full)
    return merged(merged(content, SHORT), {"training": training} | ({"method": method} if method else {}))


def _scaled(method: Section, steps: int, full: int) -> Section:
    """Return the fields of a method that count steps, or epochs of which a round has no whole number."""
    if method.get("name") == "adalora":
        final = min(method.get("tfinal", 0) * steps // full, steps - 2)
        initial = min(method.get("tinit", 0) * steps // full, steps - 2 - final)  # two steps take ranks away, at least
        return {"tinit": initial, "tfinal": final, "deltaT": max(1, method.get("deltaT", 1) * steps // full)}
    if method.get("name") == "lor2c" and (method.get("merges") or method.get("injections")):
        return {"edit_unit": "steps"}  # the schedule is made for the length of training, whatever the unit
    if method.get("name") == "heterolora" and method.get("search_every"):
        return {"search_every": max(1, method["search_every"] * steps // full)}
    return {}


def rungs(candidates: int, *, full: int, cost: float) -> list[Rung]:
    """Return the rounds of a race that costs at most ``cost`` whole runs.

    A third of the candidates (and the default's best) goes on to a round three times as long, until three are left; the
    last round is as long as the price allows, at most a whole run.

    Args:
        candidates: How many start.
        full: Steps of a whole run.
        cost: The price, in whole runs.

    Raises:
        ValueError: The price allows no round of ``LEAST_STEPS`` steps and a last one three times as long; says which
            price does.
    """
    counts = [candidates]
    while counts[-1] > FINALISTS + 1:
        counts.append(math.ceil((counts[-1] - (len(counts) > 1)) / KEEP) + 1)
    last = len(counts) - 1

    def lengths(longest: int) -> list[int]:
        return [min(full, max(LEAST_STEPS, longest // KEEP ** (last - place))) for place in range(len(counts))]

    def price(longest: int) -> float:
        return sum(count * steps for count, steps in zip(counts, lengths(longest), strict=True)) / full

    allowed = range(min(full, LEAST_STEPS * KEEP), full + 1)
    fitting = bisect_right(allowed, cost + 1e-9, key=price)
    if not fitting:
        raise ValueError(
            f"--cost {cost:g} is too little for {candidates} candidates and whole runs of {full} steps, the first "
            f"round of {LEAST_STEPS} steps: --cost {math.ceil(100 * price(allowed[0])) / 100:g} is enough, or leave "
            "arms or rates out"
        )
    steps = lengths(allowed[fitting - 1])
    return [Rung(candidates=count, steps=each) for count, each in zip(counts, steps, strict=True)]
