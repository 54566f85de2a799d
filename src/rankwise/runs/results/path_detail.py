"""What a report shows of a run's paths, as plain data: which were on when, ranks, scores, singular values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rankwise.report import frequency, gradient_ratio, overlaps, read_gradients, read_spectra, score_ranges
from rankwise.report.history import OUTSIDE, cells, in_order, row_of
from rankwise.report.moments import Moment, moments
from rankwise.report.rank_map import rank_table
from rankwise.report.scores import is_logarithmic
from rankwise.rules.kinds import kind_of
from rankwise.rules.records import Record, searches
from rankwise.runs.folder import RunFolder
from rankwise.runs.results.weights import Weight

Data = dict[str, Any]
MOST_MOMENTS = 300  # more would make the page heavy and the slider too fine to hit
DIRECTIONS = 32  # singular values that are kept of a path


def moments_of(history: Sequence[Record], on: Sequence[str], parameters: int | None) -> list[Moment]:
    """Return the moments of a history; where there is none, the one that is known, of what is on."""
    if history or not on:
        return moments(history)
    nothing: frozenset[str] = frozenset()
    return [Moment(0, "throughout", frozenset(on), nothing, nothing, nothing, {}, parameters)]


def paths_shown(history: Sequence[Record], found: Sequence[Moment], ranks: Mapping[str, int]) -> Data:
    """Return every path there was, with the moments that say which of them were on."""
    acting = {name for each in found for name in each.on | each.frozen}  # a span that was frozen when it was made
    names = _sorted(acting.union(*(record.paths for record in history)))
    if not names:
        return {"paths": [], "moments": [], "thinned": None, "heat": None}
    place = {name: number for number, name in enumerate(names)}
    by_kind = {kind: {r for name, r in ranks.items() if kind_of(name) == kind} for kind in map(kind_of, names)}
    kept = _thin(len(found))
    chosen = searches(history)
    last: dict[str, float | None] = chosen[-1].scores if chosen else {}
    share = {name: sum(name in each.on for each in found) / len(found) for name in names}
    end = found[-1]

    def rank(name: str, moment: Moment) -> int | None:
        if moment.ranks:
            return moment.ranks.get(name) or None
        same = by_kind[kind_of(name)]  # of a path that was merged away or dropped no file has the rank any more
        return ranks.get(name) or (next(iter(same)) if len(same) == 1 else None)

    return {
        "paths": [
            {
                "name": name,
                "kind": kind_of(name),
                "row": row_of(name),
                "blocks": [block for _, block in cells(name) if block != OUTSIDE],
                "r": rank(name, end),
                "score": last.get(name),
                "share": share[name],
                "on": name in end.on,
            }
            for name in names
        ],
        "moments": [
            {
                "step": each.step,
                "title": each.title,
                "enabled": each.enabled,
                "on": sorted(place[name] for name in each.on),
                "frozen": sorted(place[name] for name in each.frozen),
                "gained": sorted(place[name] for name in each.gained),
                "lost": sorted(place[name] for name in each.lost),
            }
            for each in (found[number] for number in kept)
        ],
        "thinned": len(found) if len(kept) < len(found) else None,
        "heat": _heat(history, names, {name: rank(name, end) for name in end.on}),
    }


def _heat(history: Sequence[Record], names: Sequence[str], end: Mapping[str, int | None]) -> Data:
    """Return the ranks at the end by row and block, 1 where no file has one, and how often each path was on."""
    known_ranks = all(end.values())
    table = rank_table({**_off(names, end), **{name: rank or 1 for name, rank in end.items()}})
    heat: Data = {"rows": table.rows, "columns": table.columns, "ranks": table.values, "known": known_ranks}
    heat["share"] = None
    if len(searches(history)) > 1:
        often = frequency(history)
        known = {
            (row, column): value
            for row, values in zip(often.rows, often.values, strict=True)
            for column, value in zip(often.columns, values, strict=True)
        }
        heat["share"] = [[known.get((row, column), math.nan) for column in table.columns] for row in table.rows]
    return heat


def _off(names: Sequence[str], end: Mapping[str, int | None]) -> dict[str, int]:
    """Return rank 0 for the paths that are off, unless one that is on has the same cell."""
    taken = {cell for name in end for cell in cells(name)}
    return {name: 0 for name in names if name not in end and not any(cell in taken for cell in cells(name))}


def _sorted(names: Iterable[str]) -> list[str]:
    """Sort paths by block, then as pictures sort their rows; outside the blocks last."""
    placed = {name: next(cells(name)) for name in names}
    rows = in_order(row for row, _ in placed.values())
    return sorted(placed, key=lambda name: (placed[name][1] == OUTSIDE, placed[name][1], rows.index(placed[name][0])))


def _thin(count: int) -> list[int]:
    """Return at most so many places as a page shows, evenly spread, the first and the last among them."""
    if count <= MOST_MOMENTS:
        return list(range(count))
    return sorted({round(place * (count - 1) / (MOST_MOMENTS - 1)) for place in range(MOST_MOMENTS)})


def scores_over_time(history: Sequence[Record]) -> Data | None:
    """Return the range of scores by projection and kind; None where nothing has a finite one."""
    try:
        found = score_ranges(history)
    except ValueError:
        return None
    kept = _thin(len(found.steps))
    curves = {
        name: [[values[place] for place in kept] for values in getattr(found, name)]
        for name in ("low", "middle", "high")
    }
    warm_up = len(searches(history)) - len(found.steps)
    return {
        "proxy": found.proxy,
        "steps": [found.steps[place] for place in kept],
        "rows": found.rows,
        **curves,
        "logarithmic": is_logarithmic(found),
        "warm_up": warm_up,
        "not_finite": found.not_finite,
    }


def overlap_over_time(history: Sequence[Record]) -> Data | None:
    """Return how much of each choice stayed in the next; None for fewer than two searches."""
    try:
        found = overlaps(history)
    except ValueError:
        return None
    kept = _thin(len(found.steps))
    values = [found.values[place] for place in kept]
    return {
        "steps": [found.steps[place] for place in kept],
        "values": values,
        "mean": found.mean,
        "budget": found.budget,
    }


def spectra_shown(run: RunFolder, weights: Sequence[Weight]) -> Data | None:
    """Return singular values by path: over the epochs where they were recorded, and of the adapter as it is."""
    moments = [
        {"label": f"epoch {record['epoch']:g}, step {record['step']}", "paths": _cut(record["paths"])}
        for record in (read_spectra(run.spectra) if run.spectra.is_file() else [])
    ]
    now = _cut({weight.name: list(weight.sigma) for weight in weights if any(weight.sigma)})
    if now:
        moments.append({"label": "the saved adapter, projections and shortcuts", "paths": now})
    return {"moments": moments} if moments else None


def _cut(paths: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: paths[name][:DIRECTIONS] for name in _sorted(paths)}


def gradients_shown(run: RunFolder) -> Data | None:
    """Return the ratio of LoR2C's gradients to LoRA's by block and epoch; None where both were not recorded."""
    if not run.gradients.is_file():
        return None
    recorded = read_gradients(run.gradients)
    try:
        found = gradient_ratio(recorded)
    except ValueError:
        return None
    return {"blocks": found.blocks, "epochs": found.epochs, "values": found.values, "correlation": found.correlation}
