"""From run folders to the data of a report page, and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.report.page import save_page
from rankwise.runs.folder import RunFolder
from rankwise.runs.results.detail import detail
from rankwise.runs.results.found import DAMAGED, FAILED, UNREADABLE, Summary, find_runs, only_figures, summarise

VERB = {DAMAGED: "is damaged", FAILED: "failed"}
MOST_DETAILED = 12  # of more runs only the table and the pictures that compare them are in the page


class Page(NamedTuple):
    """What was written.

    Args:
        file: The page.
        runs: How many runs it is about.
        left_out: What is not in it and why, a sentence each.
    """

    file: Path
    runs: int
    left_out: list[str]


def write_page(places: Sequence[str | Path], out: str | Path, *, tables: Sequence[Mapping[str, Any]] = ()) -> Page:
    """Write one page about a run, or about all runs in the given folders.

    Args:
        places: Run folders, or folders with runs below them; with tables also studies of which only figures are kept.
        out: The file, which must end in ``.html``; one that is there is replaced.
        tables: Tables to show above all else, such as a study's statistics: ``title``, ``header``, ``rows`` of as
            many texts or numbers, a ``note``, and ``points`` (``arm``, ``parameters``, ``seconds``, ``loss``, ``low``,
            ``high``, ``n``) where there is something to draw.

    Raises:
        FileNotFoundError: One of the places holds no run.
        ValueError: A run's records are damaged, or every run is, or ``out`` ends otherwise.
    """
    runs = _runs(places, kept=bool(tables))
    summaries = [summarise(run, root) for run, root in runs]
    left_out = [f"{each.folder} {VERB[each.state]}, {each.note}" for each in summaries if each.state in UNREADABLE]
    if runs and len(runs) == len(left_out):
        raise ValueError(left_out[0])
    if len(runs) > MOST_DETAILED:
        left_out.append(
            f"{len(runs)} runs: the page compares them; for what one run did, its own page: rankwise report RUN"
        )
    whole = [(run, each) for (run, _), each in zip(runs, summaries, strict=True) if each.state not in UNREADABLE]
    shown = whole if len(runs) <= MOST_DETAILED else []
    where = ", ".join(str(place) for place in places)
    title = summaries[0].name if len(runs) == 1 else f"{len(runs)} runs in {where}" if runs else where
    data: dict[str, Any] = {
        "title": title,
        "version": version("rankwise"),
        "comparison": [each.to_dict() for each in summaries if each.state not in UNREADABLE] if len(runs) > 1 else None,
        "runs": [_detail(run, each) for run, each in shown],
        "left_out": left_out,
        "tables": list(tables),
    }
    return Page(save_page(data, out, title=f"{title} - rankwise report"), len(runs), left_out)


def _detail(run: RunFolder, summary: Summary) -> dict[str, Any]:
    try:
        return detail(run, summary)
    except (KeyError, TypeError, AttributeError) as error:  # no run of ours looks like that
        raise ValueError(f"a file of {run.root} is damaged or of another kind ({error!r}): copy it again") from error


def _runs(places: Sequence[str | Path], *, kept: bool) -> list[tuple[RunFolder, Path]]:
    """Return each run once, with the folder that it is named from; of a study that kept only figures there is none."""
    several = len(places) > 1
    found: dict[Path, tuple[RunFolder, Path]] = {}
    for place in places:
        root = Path(place)
        for run in [] if kept and only_figures(root) else find_runs(root):
            found.setdefault(run.root.resolve(), (run, root.resolve().parent if several else root))
    return list(found.values())
