"""Rich tables of what the commands found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rankwise.runs.score import ScoreTable


def result_table(metrics: Mapping[str, Any]) -> Table:
    """Return a run's figures: one row per checkpoint and split."""
    title = escape(f"{metrics['method']} on {metrics['task']}, seed {metrics['seed']}")
    table = Table(title=title, title_justify="left")
    for column in ("checkpoint", "epoch", "split"):
        table.add_column(column, overflow="fold")
    found = metrics["metrics"]
    splits = {key: value for key, value in found["last"].items() if isinstance(value, Mapping) and value}
    names = sorted({name for values in splits.values() for name in values})
    for name in names:
        table.add_column(Text(name), justify="right", overflow="fold")
    for which in ("last", "dev_selected"):
        for split in splits:
            cells = [f"{found[which][split][name]:.4f}" for name in names]
            table.add_row(which, f"{found[which]['epoch']:.2f}", Text(split), *cells)
    counts, spent = metrics["parameters"], metrics["seconds"]
    edits = metrics.get("edits", [])
    what = "editing" if edits else "searching"
    caption = (
        f"{counts['trainable']:,} trainable parameters and {counts['head']:,} in the head of {counts['total']:,}; "
        f"{spent['train']:.1f} s of training, {spent['search']:.1f} s of them {what} ({spent['search_share']:.1%})"
    )
    if edits:
        made = "; ".join(
            f"after step {each['step']} {each['what']} ({each['enabled']:,}{_losses(each)})" for each in edits
        )
        caption += f"\nEdits, with the parameters that trained then: start ({counts['at_start']:,}); {made}"
    if "kept" in counts:
        caption += f"\n{counts['kept']:,} of the trainable parameters are in triplets that were kept"
    table.caption = escape(caption)
    return table


def _losses(edit: Mapping[str, Any]) -> str:
    """Return the dev loss just before and just after an edit, where it was measured."""
    before, after = edit["dev_loss"]
    return "" if before is None else f"; dev loss {before:.4f} -> {after:.4f}"


def score_table(found: ScoreTable) -> Table:
    """Return the paths by falling score, with the choice."""
    record = found.record
    table = Table(
        title=escape(f"{record.proxy} on {record.score_on}: {len(found.chosen)} of {len(found.scores)} paths")
    )
    table.add_column("path", overflow="fold")
    table.add_column("score", justify="right", overflow="fold")
    table.add_column("parameters", justify="right", overflow="fold")
    table.add_column("chosen", overflow="fold")
    low = float("-inf")
    for name, value in sorted(found.scores.items(), key=lambda item: -(low if item[1] is None else item[1])):
        mark = "[green]yes[/]" if name in found.chosen else ""
        unscored = " (unscored)" if name in record.unscored else ""
        text = "not finite" if value is None else f"{value:.4g}{unscored}"
        table.add_row(Text(name), text, f"{found.costs[name]:,}", mark)
    spent = sum(found.costs[name] for name in found.chosen)
    table.caption = f"{spent:,} of {sum(found.costs.values()):,} parameters chosen, in {record.seconds:.1f} s"
    return table


def plan_table(plan: Mapping[str, Any]) -> Table:
    """Return a plan's numbers, one a row."""
    table = Table(show_header=False)
    table.add_column(style="bold", overflow="fold")
    table.add_column(justify="right", overflow="fold")
    for name, value in plan.items():
        text = f"{value:,}" if isinstance(value, (int, float)) else str(value)
        table.add_row(Text(name.replace("_", " ")), Text(text))
    return table


def memory_table(memory: Mapping[str, int]) -> Table:
    """Return what a run needs of memory, one part a row."""
    table = Table(title="memory at the peak of a step", title_justify="left", show_header=False)
    table.add_column(style="bold", overflow="fold")
    table.add_column(justify="right", overflow="fold")
    for name, size in memory.items():
        if size:
            table.add_row(name, in_words(size))
    return table


def in_words(size: float) -> str:
    """Return a number of bytes as people say it."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}"
        size /= 1024
    return f"{size:,.2f} GiB"
