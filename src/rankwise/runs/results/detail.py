"""Everything a report shows of one run, as plain data."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankwise.files import read_json_object
from rankwise.method.folders import ALLOCATION
from rankwise.report import read_history
from rankwise.report.structure import words
from rankwise.rules.records import Record, edits, searches
from rankwise.runs.checkpoints import STATE
from rankwise.runs.folder import RunFolder
from rankwise.runs.results.found import REMEDY, Summary, newest_checkpoint
from rankwise.runs.results.path_detail import (
    gradients_shown,
    moments_of,
    overlap_over_time,
    paths_shown,
    scores_over_time,
    spectra_shown,
)
from rankwise.runs.results.weights import read_weights
from rankwise.runs.training.metrics import dev_by_epoch

Data = dict[str, Any]


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
    ranks = {path["name"]: path["r"] for path in allocation.get("paths", [])}
    known = list(ranks) or sorted({name for record in history for name in record.paths})
    weights = read_weights(adapter, known, values=True) if adapter is not None else []
    ranks |= {weight.name: weight.r for weight in weights}
    on = allocation.get("enabled") or [weight.name for weight in weights]
    figures = run.figures() if run.finished else {}
    return {
        **summary.to_dict(),
        "sizes": _sizes(figures, summary),
        "spent": figures.get("seconds"),
        "data": figures.get("data"),
        "versions": figures.get("versions"),
        "curves": _curves(figures, newest, summary, history),
        **paths_shown(history, moments_of(history, on, summary.parameters), ranks),
        "scores": scores_over_time(history),
        "overlap": overlap_over_time(history),
        "edits": _edits(history),
        "spectra": spectra_shown(run, weights),
        "gradients": gradients_shown(run),
        "command": figures.get("command"),
        "again": shlex.join(["rankwise", "train", str(run.config), "--out", f"{run.root}-again"]),
        "recipe": run.config.read_text(encoding="utf-8"),
    }


def _allocation(folder: Path | None) -> Data:
    if folder is None or not (folder / ALLOCATION).is_file():
        return {}
    return read_json_object(folder / ALLOCATION, REMEDY)


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


def _log(figures: Data, newest: Path | None) -> list[Data]:
    """Return Trainer's log: from the figures where it is, else from the newest checkpoint."""
    if "log" in figures.get("metrics", {}):
        return list(figures["metrics"]["log"])
    return list(read_json_object(newest / STATE, REMEDY)["log_history"]) if newest is not None else []


def _curves(figures: Data, newest: Path | None, summary: Summary, history: Sequence[Record]) -> Data:
    """Return the loss and the metrics by step, and the steps at which something was searched or edited."""
    log = _log(figures, newest)
    train = [entry for entry in log if "loss" in entry and "eval_loss" not in entry]
    dev = figures["metrics"]["per_epoch"] if figures else dev_by_epoch(log)
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
