"""How far a study is: cells by state, errors, the time left."""

from __future__ import annotations

from collections.abc import Collection

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rankwise.study.folder import StudyFolder
from rankwise.study.plan import Cell, Plan


def outcome(folder: StudyFolder, plan: Plan, cell: Cell, *, workers: int) -> str:
    """Return a line about a cell that just came to its end, and how far the study is."""
    if folder.run(cell).finished:
        told = f"loss {folder.loss(cell):.4f}"
    else:
        told = f"[red]failed[/]: {escape(error_line(folder, cell))}"
    done = sum(folder.loss(each) is not None for each in plan.cells)
    left = time_left(folder, plan, workers=workers)
    ahead = f", {duration(left)} left" if left else ""
    return f"[bold]{done}/{len(plan.cells)}[/]{ahead}  {escape(cell.name)}  {told}"


def error_line(folder: StudyFolder, cell: Cell) -> str:
    """Return the first line of a failed cell's error."""
    return folder.error_file(cell).read_text(encoding="utf-8").partition("\n")[0]


def time_left(folder: StudyFolder, plan: Plan, *, workers: int) -> float | None:
    """Return the seconds that the cells known by now still take, by those of their group or all that finished."""
    seconds: dict[str, list[float]] = {}
    for cell in plan.cells:
        run = folder.run(cell)
        if run.finished:
            seconds.setdefault(cell.group, []).append(float(run.figures()["seconds"]["train"]))
    every = [value for own in seconds.values() for value in own]
    if not every:
        return None
    open_cells = [cell for cell in plan.cells if folder.loss(cell) is None]
    return sum(_mean(seconds.get(cell.group, every)) for cell in open_cells) / max(workers, 1)


def status_table(folder: StudyFolder, plan: Plan, *, running: Collection[str]) -> Group:
    """Return the cells by group and state, the notes and errors below."""
    table = Table()
    table.add_column("group")
    for column in ("finished", "failed", "running", "waiting"):
        table.add_column(column, justify="right")
    errors = []
    for group in dict.fromkeys(cell.group for cell in plan.cells):
        cells = [cell for cell in plan.cells if cell.group == group]
        finished = [cell for cell in cells if folder.run(cell).finished]
        failed = [cell for cell in cells if cell not in finished and folder.error_file(cell).is_file()]
        taken = [cell for cell in cells if cell not in (*finished, *failed) and cell.name in running]
        errors += [f"{cell.name}: {error_line(folder, cell)}" for cell in failed]
        counts = (len(finished), len(failed), len(taken), len(cells) - len(finished) - len(failed) - len(taken))
        table.add_row(escape(group), *map(str, counts))
    left = time_left(folder, plan, workers=len(running))
    ahead = "" if not left else f"{duration(left)} left with {max(len(running), 1)} at work"
    below = "\n".join(text for text in (ahead, *plan.notes, *errors) if text)
    # Beside the table and not its title and caption, which would be broken at the table's width.
    return Group(Text(f"{folder.root}: {len(plan.cells)} cells known by now"), table, Text(below))


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
