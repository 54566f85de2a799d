"""Keep what a study measured without its weights, and read the tables of what was kept.

Run: python -m studies.kept STUDY_FOLDER results/studies/NAME --as MODEL=/path/of/the/model DATA=/path/of/the/data
Every run's ``metrics.json`` and ``study.json`` are copied, the places of this machine written as the names that are
given for them; of a search's history stays what was chosen. ``rankwise study table results/studies/NAME`` reads the
copy as it reads the study.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from rankwise.files import write_text_atomic
from rankwise.rules.records import from_lines, searches
from rankwise.study.folder import StudyFolder
from rankwise.study.formats import markdown
from rankwise.study.plan import Study
from rankwise.study.tables import study_tables

KEPT = Path("results/studies")
HISTORY, CHOICES = "search_history.jsonl", "choices.json"
SWITCHED = "what the searches chose"  # the end of that table's heading


def keep(study: Path, out: Path, names: Mapping[str, str]) -> int:
    """Copy a study's figures and return how many runs there are.

    Args:
        study: The study's folder.
        out: Where to.
        names: What is written in the place of a path of this machine.
    """
    files = [study / "study.json", *sorted(study.glob("*/*/metrics.json"))]
    for file in files:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        content.get("metrics", {}).pop("log", None)  # the training curve: a large part, and in no table
        text = json.dumps(content, indent=1)
        for path, name in names.items():
            text = text.replace(path, name)
        target = out / file.relative_to(study)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(target, text + "\n")
    for file in sorted(study.glob(f"*/*/{HISTORY}")):
        found = [search.chosen for search in searches(from_lines(file.read_text(encoding="utf-8"), file))]
        if found:
            write_text_atomic(out / file.relative_to(study).with_name(CHOICES), json.dumps(found) + "\n")
    return len(files) - 1


def switching(root: Path, study: Study) -> str:
    """Return what the searches of each arm chose in the runs that are reported, as a Markdown table; "" without any.

    An arm at a point of axes stands there with it. Overlap is the share of the smaller choice that the next one keeps,
    as a mean over pairs of consecutive searches.
    """
    rows = []
    for group in study.groups:
        each = [json.loads(file.read_text("utf-8")) for file in sorted(root.glob(f"{group.name}/report-*/{CHOICES}"))]
        if each:
            rows.append([", ".join((group.arm, *group.point.values())), *_switching_of(each)])
    if not rows:
        return ""
    head = ["arm", "searches a run", "on at a time", "ever on", "overlap with the one before", "chosen most"]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _switching_of(runs: Iterable[list[list[str]]]) -> list[str]:
    runs = list(runs)
    overlaps = [len({*a} & {*b}) / min(len(a), len(b)) for run in runs for a, b in pairwise(run) if a and b]
    ends = Counter(_kind(name) for run in runs for choice in run for name in choice)
    most = ", ".join(f"{name} {count / ends.total():.0%}" for name, count in ends.most_common(3))
    return [
        f"{mean(map(len, runs)):g}",
        f"{mean(len(choice) for run in runs for choice in run):.1f}",
        f"{mean(len({name for choice in run for name in choice}) for run in runs):.1f}",
        f"{mean(overlaps):.2f}" if overlaps else "",
        most,
    ]


def _kind(path: str) -> str:
    """Return what a path is in its block: its name behind the block's number."""
    return re.split(r"(?:^|\.)\d+\.", path)[-1]


def kept_tables(root: Path = KEPT) -> dict[str, str]:
    """Return the Markdown tables of every study that was kept, by their headings."""
    tables = {}
    for file in sorted(root.glob("*/study.json")):
        folder = StudyFolder(file.parent)
        study = folder.planner()
        assert isinstance(study, Study), f"{file.parent} holds a race"
        for table in study_tables(folder, study):
            _, heading, body = markdown([table]).partition(f"### {table.title}\n\n")
            assert heading
            tables[table.title] = body.split("\n\n")[0]
        chosen = switching(file.parent, study)
        if chosen:
            tables[f"{study.title}, {SWITCHED}"] = chosen
    return tables


def main() -> None:
    """Keep one study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--as", dest="names", nargs="+", default=[], metavar="NAME=PATH")
    given = parser.parse_args()
    names = {path: name for name, _, path in (each.partition("=") for each in given.names)}
    longest_first = dict(sorted(names.items(), key=lambda item: -len(item[0])))
    print(f"{keep(given.study, given.out, longest_first)} runs in {given.out}")


if __name__ == "__main__":
    main()
