"""The tables of studies and races for a report page, as plain data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rankwise.study.folder import StudyFolder
from rankwise.study.formats import text
from rankwise.study.plan import Study
from rankwise.study.tables import Table, study_tables
from rankwise.study.tuning import race_tables


def page_tables(places: Iterable[str | Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the tables of those places that are studies or races, and why some have none yet.

    Args:
        places: Folders; those that hold neither are passed over.

    Raises:
        ValueError: A study's plan is damaged.
    """
    tables: list[dict[str, Any]] = []
    reasons: list[str] = []
    for folder in (StudyFolder(Path(place)) for place in places):
        if not folder.plan_file.is_file():
            continue
        planner = folder.planner()
        try:
            found = study_tables(folder, planner) if isinstance(planner, Study) else race_tables(folder, planner)
        except ValueError as nothing_yet:
            reasons.append(str(nothing_yet))
            continue
        tables += [plain(table) for table in found]
    return tables, reasons


def plain(table: Table) -> dict[str, Any]:
    """Return a table as texts and numbers, and the arms for a picture of it."""
    rows = [[value if isinstance(value, int | float) else text(value) for value in row] for row in table.rows]
    points = [point._asdict() for point in table.points]
    note = table.note.replace("`", "")
    return {"title": table.title, "header": table.header, "rows": rows, "note": note, "points": points}
