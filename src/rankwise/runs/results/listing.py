"""The runs below a folder as a table in the terminal, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rankwise.errors import check_choice
from rankwise.runs.results.found import DAMAGED, FAILED, FINISHED, UNFINISHED, UNREADABLE, Summary, find_runs, summarise

FIELDS = {
    "run": "name",
    "state": "state",
    "method": "method",
    "task": "task",
    "model": "model",
    "seed": "seed",
    "rate": "learning_rate",
    "budget": "budget",
    "parameters": "parameters",
    "seconds": "seconds",
}  # column -> field of a summary
NUMBERS = ("seed", "rate", "budget", "parameters", "seconds")
SPARE = (
    "model",
    "rate",
    "seed",
    "task",
    "budget",
    "seconds",
    "state",
    "method",
)  # what goes first where a line is too narrow
STYLES = {FINISHED: "green", FAILED: "red", DAMAGED: "red"}


def list_runs(
    folder: str | Path, *, sort: str = "run", descending: bool = False, split: str | None = None
) -> list[Summary]:
    """Return the runs in a folder and below it, sorted.

    Args:
        folder: The folder.
        sort: A column of ``FIELDS``, or a metric of the last checkpoint on ``split``.
        descending: The largest first; runs without that figure come last either way.
        split: The split that metrics are taken from; by default the one that most runs were measured on beside dev.

    Raises:
        FileNotFoundError: There is no such folder, or no run in it.
        ValueError: There is no such column or split.
    """
    root = Path(folder)
    found = [summarise(run, root) for run in find_runs(root)]
    if split is not None:
        check_choice("split", split, sorted({name for run in found for name in run.figures.get("last", {})}))
    chosen = split or shown_split(found)
    check_choice("sort", sort, [*FIELDS, *metrics(found, chosen)])

    def value(run: Summary) -> Any:
        return vars(run)[FIELDS[sort]] if sort in FIELDS else figure(run, "last", chosen, sort)

    have = [run for run in found if value(run) is not None]
    without = [run for run in found if value(run) is None]
    return [*sorted(have, key=value, reverse=descending), *without]


def shown_split(runs: Sequence[Summary]) -> str:
    """Return the split that most runs were measured on, dev only where there is no other."""
    counts: dict[str, int] = {}
    for run in runs:
        for split, values in run.figures.get("last", {}).items():
            counts[split] = counts.get(split, 0) + bool(values)
    beside = {split: count for split, count in counts.items() if split != "dev" and count}
    return max(beside, key=lambda split: beside[split]) if beside else "dev"


def metrics(runs: Sequence[Summary], split: str) -> list[str]:
    """Return the metrics of the last checkpoints on a split, in the order in which they come."""
    return list(dict.fromkeys(name for run in runs for name in run.figures.get("last", {}).get(split, {})))


def figure(run: Summary, which: str, split: str, metric: str) -> float | None:
    """Return one figure of a run, None where it has none."""
    return run.figures.get(which, {}).get(split, {}).get(metric)


def runs_table(runs: Sequence[Summary], *, split: str | None = None, width: int = 120) -> Table:
    """Return the runs as a table, with their loss and the metrics that pick their checkpoints.

    Under it stand what is the same in all of them, which columns had no room, and what is wrong with damaged ones.

    Args:
        runs: The runs, in the order to show them.
        split: The split whose metrics are shown; by default the one that most runs were measured on beside dev.
        width: Characters that a line has room for.
    """
    chosen = split or shown_split(runs)
    headlines = {run.headline for run in runs} | {"loss"}
    named = [name for name in metrics(runs, chosen) if name in headlines]
    columns: dict[str, list[str]] = {
        "run": [run.name for run in runs],
        "state": [run.note if run.state == UNFINISHED else run.state for run in runs],
        "method": [run.method for run in runs],
        "task": [run.task for run in runs],
        "model": [run.model.rpartition("/")[2].removeprefix("package:") for run in runs],
        "seed": ["" if run.seed is None else str(run.seed) for run in runs],
        "rate": [_number(run.learning_rate) for run in runs],
        "budget": [_number(run.budget) for run in runs],
        "parameters": [_number(run.parameters) for run in runs],
        **{name: [_metric(figure(run, "last", chosen, name)) for run in runs] for name in named},
        "seconds": ["" if run.seconds is None else f"{run.seconds:,.1f}" for run in runs],
    }
    always = {"run", "parameters", "seconds", *named}
    told = {name: _same(cells, runs) for name, cells in columns.items() if name not in always and len(runs) > 1}
    kept = {name: cells for name, cells in columns.items() if not told.get(name) and any(cells)}
    dropped = []
    for name in SPARE:
        if name in kept and _width(kept) > width:
            dropped.append(name)
            del kept[name]
    title = escape(f"metrics of the last checkpoint on {chosen}")
    table = Table(title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    for name in kept:
        table.add_column(
            name,
            justify="right" if name in (*NUMBERS, *named) else "left",
            no_wrap=name != "run",
            overflow="fold",
            min_width=8 if name == "run" else None,
        )
    for number, run in enumerate(runs):
        style = STYLES.get(run.state, "yellow")
        table.add_row(*(Text(cells[number], style=style if name == "state" else "") for name, cells in kept.items()))
    same = ", ".join(f"{name} {value}" for name, value in told.items() if value)
    under = [f"the same in all: {same}"] if same else []
    under += [f"no room for {', '.join(dropped)}: a wider terminal, or --json"] if dropped else []
    under += [f"{run.name}: {run.note}" for run in runs if run.state in UNREADABLE]
    table.caption = Text("\n".join(under)) if under else None
    return table


def _width(columns: Mapping[str, Sequence[str]]) -> int:
    """Return how many characters a line with these columns takes; two stand around each."""
    return sum(max(map(len, (name, *cells))) + 2 for name, cells in columns.items()) + len(columns)


def _same(cells: Sequence[str], runs: Sequence[Summary]) -> str:
    """Return what a column says of all runs that can be read, if that is one thing."""
    said = {cell for cell, run in zip(cells, runs, strict=True) if run.state not in UNREADABLE}
    return said.pop() if len(said) == 1 else ""


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _metric(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def to_json(runs: Sequence[Summary]) -> str:
    """Return everything that is known of each run as JSON text."""
    return json.dumps([run.to_dict() for run in runs], indent=2)
