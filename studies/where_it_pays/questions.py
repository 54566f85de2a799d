"""Further tables from the runs of ``curve`` and ``classify``: one space against its parts, one seed against another.

Printed and put into pages by ``table.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

from studies.where_it_pays.layout import overlap
from studies.where_it_pays.stats import better_rate

from rankwise.study.statistics import paired, summarise

Run = Mapping[str, Any]
WHOLE, PARTS = "joint-whole", ("joint-linear", "layer", "everything", "all-linear")
PLANS = ("joint-whole", "joint-linear", "grad_norm", "newton", "all-linear", "layer")


def at_best(runs: Iterable[Run], metric: str) -> dict[str, dict[int, Run]]:
    """Return each arm's runs by seed, at the arm's better rate."""
    rates: dict[str, dict[float, dict[int, Run]]] = {}
    for run in runs:
        rates.setdefault(run["arm"], {}).setdefault(run["rate"], {})[run["seed"]] = run
    best = {
        arm: better_rate({rate: {s: run[metric] for s, run in own.items()} for rate, own in found.items()})
        for arm, found in rates.items()
    }
    return {arm: found[best[arm]] for arm, found in rates.items()}


def whole_against_parts(runs: Iterable[Run], metric: str = "test_loss") -> tuple[list[str], list[list[str]]]:
    """Return a row for each budget: the plan in the whole space minus what knows a part of it, paired over seeds."""
    rows = []
    for budget, own in by_budget(runs):
        best = at_best(own, metric)
        losses = {arm: {seed: run[metric] for seed, run in found.items()} for arm, found in best.items()}
        cells = []
        for part in PARTS:
            common = set(losses.get(part, ())) & set(losses.get(WHOLE, ()))
            found = paired(losses[WHOLE], losses[part]) if common else None
            shown = "" if found is None else f"{found.mean:+.3f} (one seed)"
            if found is not None and found.n > 1:
                shown = f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}] ({found.n})"
            cells.append(shown)
        if any(cells):
            rows.append([f"{budget:,}", *cells])
    return ["parameters", *(f"{WHOLE} minus {part} (n)" for part in PARTS)], rows


def seed_against_seed(runs: Iterable[Run], metric: str = "test_loss") -> tuple[list[str], list[list[str]]]:
    """Return a row for each budget and arm: how much of a choice two seeds share, and how far their losses spread."""
    rows = []
    for budget, own in by_budget(runs):
        for arm, found in at_best(own, metric).items():
            if arm not in PLANS or len(found) < 3:
                continue
            shared = [overlap(a["ranks"], b["ranks"]) for a, b in combinations(found.values(), 2)]
            spread = summarise([run[metric] for run in found.values()])
            paths = sorted(len(run["ranks"]) for run in found.values())
            rows.append(
                [
                    f"{budget:,}",
                    arm,
                    str(len(found)),
                    str(paths[0]) if paths[0] == paths[-1] else f"{paths[0]} to {paths[-1]}",
                    f"{min(shared):.2f}, {summarise(shared).mean:.2f}, {max(shared):.2f}",
                    f"{spread.sd:.3f}",
                ]
            )
    header = ["parameters", "arm", "seeds", "paths", "components two seeds share (least, mean, most)", "sd of the loss"]
    return header, rows


def by_budget(runs: Iterable[Run]) -> list[tuple[int, list[Run]]]:
    """Return the runs of each budget, the smallest first."""
    found: dict[int, list[Run]] = {}
    for run in runs:
        found.setdefault(run["budget"], []).append(run)
    return sorted(found.items())
