"""Everything a report shows of one run, as plain data."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rankwise.files import read_json_object
from rankwise.method.folders import ALLOCATION
from rankwise.report import frequency, gradient_ratio, overlaps, read_gradients, read_history, read_spectra, score_ranges
from rankwise.report.history import OUTSIDE, cells, in_order, row_of
from rankwise.report.moments import Moment, moments
from rankwise.report.rank_map import rank_table
from rankwise.report.scores import is_logarithmic
from rankwise.report.structure import words
from rankwise.rules.kinds import kind_of
from rankwise.rules.records import Record, edits, searches
from rankwise.runs.checkpoints import STATE
from rankwise.runs.folder import RunFolder
from rankwise.runs.results.found import REMEDY, Summary, dev_figures, newest_checkpoint
from rankwise.runs.results.weights import Weight, read_weights
from rankwise.tasks.metrics import SMALLER_IS_BETTER

Data = dict[str, Any]
MOST_MOMENTS = 300  # more would make the page heavy and the slider too fine to hit
DIRECTIONS = 32  # singular values that are kept of a path


def detail(run: RunFolder, summary: Summary) -> Data:
    """Return what a page shows of a run.

    Args:
        run: Its folder.
        summary: The same run at a glance; not a damaged one.

    Raises:
        ValueError: A file of the run is damaged; the message names it.
    """
    history = read_history(run.history) if run.history.is_file() else []
    newest = newest_checkpoint(run)
    adapter = run.adapter if run.adapter.is_dir() else newest
    allocation = _allocation(adapter)
    known = [path["name"] for path in allocation] or sorted({name for record in history for name in record.paths})
    weights = read_weights(adapter, known, values=True) if adapter is not None else []
    found = _moments(history, weights, allocation, run, summary)
    figures = run.figures() if run.finished else {}
    ranks = _ranks(allocation, weights)
    return {
        **summary.to_dict(),
        "headline": summary.headline or next(iter(_dev_metrics(summary)), "loss"),
        "smaller": sorted(SMALLER_IS_BETTER),
        "sizes": _sizes(figures, summary),
        "spent": figures.get("seconds"),
        "data": figures.get("data"),
        "versions": figures.get("versions"),
        "curves": _curves(run, figures, newest, summary, history),
        **_paths(history, found, ranks),
        "scores": _scores(history),
        "overlap": _overlap(history),
        "edits": _edits(history),
        "spectra": _spectra(run, weights),
        "gradients": _gradients(run),
        "command": figures.get("command"),
        "again": shlex.join(["rankwise", "train", str(run.config), "--out", f"{run.root}-again"]),
        "recipe": run.config.read_text(encoding="utf-8"),
    }


def _dev_metrics(summary: Summary) -> Iterable[str]:
    return (name for name in summary.figures.get("last", {}).get("dev", {}) if name != "loss")


def _allocation(folder: Path | None) -> list[Data]:
    if folder is None or not (folder / ALLOCATION).is_file():
        return []
    paths: list[Data] = read_json_object(folder / ALLOCATION, REMEDY).get("paths", [])
    return paths


def _sizes(figures: Data, summary: Summary) -> list[tuple[str, int]]:
    counts = figures.get("parameters") or {"trainable": summary.parameters}
    labels = {
        "trainable": "adapter parameters that train at the end",
        "at_start": "adapter parameters that train at the start",
        "resident": "adapter parameters in memory, candidates included",
        "contributing": "adapter parameters that act on the output",
        "kept": "parameters in triplets that were kept",
        "head": "parameters of the head",
        "total": "parameters of the whole model",
    }
    return [(label, counts[name]) for name, label in labels.items() if counts.get(name) is not None]


def _log(run: RunFolder, figures: Data, newest: Path | None) -> list[Data]:
    """Return Trainer's log: from the figures where it is, else from the newest checkpoint."""
    if "log" in figures.get("metrics", {}):
        return list(figures["metrics"]["log"])
    return list(read_json_object(newest / STATE, REMEDY)["log_history"]) if newest is not None else []


def _curves(run: RunFolder, figures: Data, newest: Path | None, summary: Summary, history: Sequence[Record]) -> Data:
    """Return the loss and the metrics by step, and the steps at which something was searched or edited."""
    log = _log(run, figures, newest)
    train = [entry for entry in log if "loss" in entry and "eval_loss" not in entry]
    dev = figures["metrics"]["per_epoch"] if figures else _dev(log)
    names = list(dict.fromkeys(name for entry in dev for name in entry if name not in ("step", "epoch")))
    ends = [entry["step"] for entry in (*train, *dev)] + [record.step for record in history]
    return {
        "end": summary.step or max(ends, default=0),
        "planned": summary.steps,
        "train": {
            "step": [entry["step"] for entry in train],
            "loss": [entry["loss"] for entry in train],
            "rate": [entry.get("learning_rate") for entry in train],
        },
        "dev": {"step": [entry["step"] for entry in dev], **{n: [entry.get(n) for entry in dev] for n in names}},
        "metrics": names,
        "searches": [record.step for record in searches(history)],
        "edits": [{"step": record.step, "what": words(record)} for record in edits(history)],
    }


def _dev(log: Iterable[Data]) -> list[Data]:
    return [{"step": entry["step"], **dev_figures(entry)} for entry in log if "eval_loss" in entry]


def _ranks(allocation: Sequence[Data], weights: Sequence[Weight]) -> dict[str, int]:
    return {path["name"]: path["r"] for path in allocation} | {weight.name: weight.r for weight in weights}


def _moments(
    history: Sequence[Record], weights: Sequence[Weight], allocation: Sequence[Data], run: RunFolder, summary: Summary
) -> list[Moment]:
    """Return the moments of a history; where there is none, the one that is known."""
    if history:
        return moments(history)
    on = frozenset([path["name"] for path in allocation] or [weight.name for weight in weights])
    if not on:
        return []
    nothing: frozenset[str] = frozenset()
    return [Moment(0, "throughout", on, nothing, nothing, nothing, {}, summary.parameters)]


def _paths(history: Sequence[Record], found: Sequence[Moment], ranks: dict[str, int]) -> Data:
    """Return every path there was, with the moments that say which of them were on."""
    names = sorted({name for each in found for name in each.on | each.frozen}.union(*(r.paths for r in history)), key=_key)
    if not names:
        return {"paths": [], "moments": [], "thinned": None, "heat": None}
    place = {name: number for number, name in enumerate(names)}
    by_kind = {kind_of(name): r for name, r in ranks.items()}
    kept = _thin(len(found))
    chosen = searches(history)
    last: dict[str, float | None] = chosen[-1].scores if chosen else {}
    share = {name: sum(name in each.on for each in found) / len(found) for name in names}
    end = found[-1]

    def rank(name: str, moment: Moment) -> int | None:
        return moment.ranks.get(name) or ranks.get(name) or by_kind.get(kind_of(name))

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
                "frozen": sorted(place[name] for name in each.frozen if name in place),
                "gained": sorted(each.gained, key=_key),
                "lost": sorted(each.lost, key=_key),
            }
            for each in (found[number] for number in kept)
        ],
        "thinned": len(found) if len(kept) < len(found) else None,
        "heat": _heat(history, names, {name: rank(name, end) or 1 for name in end.on}),
    }


def _heat(history: Sequence[Record], names: Sequence[str], end: dict[str, int]) -> Data:
    table = rank_table({name: end.get(name, 0) for name in names if name in end} | _off(names, end))
    heat: Data = {"rows": table.rows, "columns": table.columns, "ranks": table.values, "share": None}
    if len(searches(history)) > 1:
        often = frequency(history)
        known = {
            (row, column): value
            for row, values in zip(often.rows, often.values, strict=True)
            for column, value in zip(often.columns, values, strict=True)
        }
        heat["share"] = [[known.get((row, column), math.nan) for column in table.columns] for row in table.rows]
    return heat


def _off(names: Sequence[str], end: dict[str, int]) -> dict[str, int]:
    """Return rank 0 for the paths that are off, unless one that is on has the same cell."""
    taken = {cell for name in end for cell in cells(name)}
    return {name: 0 for name in names if name not in end and not any(cell in taken for cell in cells(name))}


def _key(name: str) -> tuple[int, int, str]:
    row, block = next(cells(name))
    order = in_order([row, *ORDER])
    return (block if block != OUTSIDE else 10**6, order.index(row), name)


ORDER = ("res1", "res2", "in", "cut", "layer", "query", "value", "q_proj", "v_proj")


def _thin(count: int) -> list[int]:
    """Return at most so many places as a page shows, evenly spread, the first and the last among them."""
    if count <= MOST_MOMENTS:
        return list(range(count))
    return sorted({round(place * (count - 1) / (MOST_MOMENTS - 1)) for place in range(MOST_MOMENTS)})


def _scores(history: Sequence[Record]) -> Data | None:
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


def _overlap(history: Sequence[Record]) -> Data | None:
    try:
        found = overlaps(history)
    except ValueError:
        return None
    kept = _thin(len(found.steps))
    values = [found.values[place] for place in kept]
    return {"steps": [found.steps[place] for place in kept], "values": values, "mean": found.mean, "budget": found.budget}


def _edits(history: Sequence[Record]) -> list[Data]:
    return [
        {
            "step": record.step,
            "what": words(record),
            "enabled": record.counts.get("enabled"),
            "measured": [*record.measured, None, None][:2],
            "metric": record.metric,
            "scores": record.scores,
            "seconds": record.seconds,
        }
        for record in edits(history)
    ]


def _spectra(run: RunFolder, weights: Sequence[Weight]) -> Data | None:
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
    return {name: values[:DIRECTIONS] for name, values in sorted(paths.items(), key=lambda item: _key(item[0]))}


def _gradients(run: RunFolder) -> Data | None:
    if not run.gradients.is_file():
        return None
    try:
        found = gradient_ratio(read_gradients(run.gradients))
    except ValueError:
        return None
    return {"blocks": found.blocks, "epochs": found.epochs, "values": found.values, "correlation": found.correlation}
