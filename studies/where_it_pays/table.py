"""The tables of docs/where-it-pays.md from the studies' JSON files, as Markdown.

Run: python -m studies.where_it_pays.table [--results FOLDER] [--into docs/where-it-pays.md docs/studies/*.md]
Per arm: parameters, the better of the rates that were run and what speaks against it, mean, standard deviation and
number of seeds, and the paired difference to the baseline with Student's 95 % interval over seeds. --into puts each
table in the place of the pages' table under the same heading.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.kept import kept_tables
from studies.where_it_pays.layout import overlap
from studies.where_it_pays.questions import seed_against_seed, whole_against_parts
from studies.where_it_pays.stats import better_rate, rank_correlation, reservation

from rankwise.files import write_text_atomic
from rankwise.study.statistics import Difference, paired, summarise

Run = Mapping[str, Any]
BASELINE = "all-linear"
BY_GAIN = "breadth=0"  # the plans that were changed in one thing each


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def arms_of(runs: Iterable[Run]) -> dict[str, dict[float, dict[int, Run]]]:
    """Return runs by arm, with what it was given otherwise, rate and seed, arms in the order of their first run."""
    found: dict[str, dict[float, dict[int, Run]]] = {}
    for run in runs:
        name = ", ".join(filter(None, (run["arm"], run.get("variant"))))
        found.setdefault(name, {}).setdefault(run["rate"], {})[run["seed"]] = run
    return found


def at_better_rate(rates: Mapping[float, Mapping[int, Run]], metric: str) -> tuple[str, Mapping[int, Run]]:
    """Return an arm's better rate, with what speaks against it, and its runs by seed."""
    losses = {rate: {seed: run[metric] for seed, run in runs.items()} for rate, runs in rates.items()}
    rate = better_rate(losses)
    against = reservation(losses, rate)
    return f"{rate:g}" + (f" ({against})" if against else ""), rates[rate]


def comparison(runs: Iterable[Run], *, metric: str, also: Sequence[str] = (), baseline: str = BASELINE) -> str:
    """Return the table of one budget.

    Args:
        runs: Its runs.
        metric: The loss that rates are chosen by and that is compared.
        also: Further figures of which the mean is shown.
        baseline: The arm that the others are paired with.
    """
    arms = {arm: at_better_rate(rates, metric) for arm, rates in arms_of(runs).items()}
    against = {seed: run[metric] for seed, run in arms[baseline][1].items()} if baseline in arms else {}
    rows = [_row(arm, rate, own, metric, also, against, arm == baseline) for arm, (rate, own) in arms.items()]
    rows.sort(key=lambda row: float(row[3]))
    paired_with = f"minus {baseline}, paired"
    return markdown(
        ["arm", "parameters", "rate", metric.replace("_", " "), "sd", "n", paired_with, "detectable"]
        + [name.replace("_", " ") for name in also],
        rows,
    )


def _row(
    arm: str,
    rate: str,
    own: Mapping[int, Run],
    metric: str,
    also: Sequence[str],
    against: Mapping[int, float],
    is_baseline: bool,
) -> list[str]:
    values = {seed: run[metric] for seed, run in own.items()}
    summary = summarise(list(values.values()))
    sizes = sorted({run["parameters"] for run in own.values()})
    size = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    difference, seen = "", ""
    if not is_baseline and set(values) & set(against):
        found = paired(values, against)
        difference = _difference(found)
        seen = _number(found.detectable)
    means = [f"{summarise([run[name] for run in own.values()]).mean:.3f}" for name in also]
    return [
        arm,
        size,
        rate,
        f"{summary.mean:.3f}",
        _number(summary.sd),
        str(summary.n),
        difference,
        seen,
        *means,
    ]


def _difference(found: Difference) -> str:
    return f"{found.mean:+.3f}" + (f" [{found.low:+.3f}, {found.high:+.3f}]" if found.n > 1 else "")


def _number(value: float) -> str:
    return f"{value:.3f}" if value == value else ""


def rates_table(runs: Iterable[Run], *, metric: str, by: Sequence[str]) -> str:
    """Return every arm's mean at every rate, so that the reader sees what the choice of the rate does."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run[name] for name in by), []).append(run)
    rates = sorted({run["rate"] for own in groups.values() for run in own})
    rows = []
    for group, own in sorted(groups.items()):
        for arm, found in arms_of(own).items():
            cells = [
                f"{summarise([run[metric] for run in found[rate].values()]).mean:.3f} ({len(found[rate])})"
                if rate in found
                else ""
                for rate in rates
            ]
            rows.append([*map(str, group), arm, *cells])
    return markdown([*by, "arm", *(f"rate {rate:g} (n)" for rate in rates)], rows)


def correlations(runs: Sequence[Run], left_out: Sequence[Run] = ()) -> str:
    """Return the rank correlation of every score with every path's worth, all paths and linear ones.

    Args:
        runs: Every path alone, and the scores.
        left_out: All paths but one, for the worth of each as what the others lack; no columns with fewer than three.
    """
    left_out = [run for run in left_out if "without" in run]
    base = next(run["test_loss"] for run in runs if run.get("path") == "base")
    whole = {run["seed"]: run["test_loss"] for run in left_out if run["without"] == "nothing"}
    found: dict[str, dict[str, list[float]]] = {"": {}, ", left out": {}}
    for run in runs:
        if "path" in run and run["path"] != "base":
            found[""].setdefault(run["path"], []).append(base - run["test_loss"])
    for run in left_out:
        if run["without"] != "nothing" and run["seed"] in whole:
            found[", left out"].setdefault(run["without"], []).append(run["test_loss"] - whole[run["seed"]])
    worth: dict[str, dict[str, float]] = {}
    for kind, values in found.items():
        means = {name: summarise(own).mean for name, own in values.items()}
        linear = {name: mean for name, mean in means.items() if name.endswith("_proj")}
        worth |= {f"all {len(means)}{kind}": means, f"{len(linear)} linear{kind}": linear}
    worth = {name: own for name, own in worth.items() if len(own) > 2}
    rows = [
        [run["proxy"] + (f", after {run['after']} steps" if run.get("after") else ""), str(run["seed"])]
        + [f"{rank_correlation(run['values'], own):.2f}" for own in worth.values()]
        + [f"{run['seconds']:.1f}"]
        for run in sorted(
            (run for run in runs if "proxy" in run), key=lambda run: (run.get("after") or 0, run["proxy"], run["seed"])
        )
    ]
    return markdown(["score", "seed", *worth, "seconds"], rows)


def worths(runs: Sequence[Run]) -> str:
    """Return the test loss of every path trained alone, by block and kind."""
    losses: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        if "path" in run and run["path"] != "base":
            _, block, leaf = run["path"].split(".")
            losses.setdefault((leaf, block), []).append(run["test_loss"])
    blocks = sorted({block for _, block in losses})
    leaves = list(dict.fromkeys(leaf for leaf, _ in losses))
    rows = [
        [leaf, *(f"{summarise(losses[leaf, block]).mean:.3f}" if (leaf, block) in losses else "" for block in blocks)]
        for leaf in leaves
    ]
    return markdown(["path", *(f"block {block}" for block in blocks)], rows)


def ablations(changed: Sequence[Run], plain: Sequence[Run]) -> dict[str, str]:
    """Return a table for each task and budget: every variant of a plan by gain alone, paired with the plain one.

    Args:
        changed: Runs of variants.
        plain: Runs of the studies, the plans by gain alone among them.
    """
    tables = {}
    places = sorted({_place(run) for run in changed if "arm" in run and run["arm"] != "base"})
    for place in places:
        task, arm, budget, rate = place
        own = {run["seed"]: run for run in plain if _place(run) == place and run.get("variant") == BY_GAIN}
        rows = [_variant(BY_GAIN, own, own)]
        for variant in dict.fromkeys(run["variant"] for run in changed if _place(run) == place):
            runs = {run["seed"]: run for run in changed if _place(run) == place and run["variant"] == variant}
            rows.append(_variant(variant, runs, own))
        header = [
            "variant",
            "parameters",
            "loss",
            "n",
            f"minus {BY_GAIN}, paired",
            "same ranks",
            "predicted gain",
            "kept",
        ]
        tables[f"{arm}, {task}, {budget:,} parameters, rate {rate:g}"] = markdown(header, rows)
    return tables


def _place(run: Run) -> tuple[Any, ...]:
    return tuple(run.get(name, "WikiText-2") for name in ("task", "arm", "budget", "rate"))


def _loss(run: Run) -> float:
    return float(run["held_out_loss"] if "held_out_loss" in run else run["test_loss"])


def _variant(name: str, runs: Mapping[int, Run], own: Mapping[int, Run]) -> list[str]:
    common = sorted(set(runs) & set(own))
    difference = ""
    if runs is not own and common:
        found = paired({seed: _loss(run) for seed, run in runs.items()}, {s: _loss(run) for s, run in own.items()})
        difference = _difference(found)
    same = [overlap(runs[seed]["ranks"], own[seed]["ranks"]) for seed in common]
    gains = [run["about"]["predicted_gain"] for run in runs.values()]
    kept = [run["about"]["kept"] for run in runs.values() if run["about"].get("kept") is not None]
    sizes = sorted(run["parameters"] for run in runs.values())
    return [
        name,
        f"{sizes[0]:,}" if sizes[0] == sizes[-1] else f"{sizes[0]:,} to {sizes[-1]:,}",
        f"{summarise([_loss(run) for run in runs.values()]).mean:.3f}",
        str(len(runs)),
        difference,
        f"{summarise(same).mean:.2f}" if same and runs is not own else "",
        f"{summarise(gains).mean:.3f}",
        f"{summarise(kept).mean:.2f}" if kept else "",
    ]


def moving(runs: Sequence[Run]) -> dict[str, str]:
    """Return a table for each task, budget and rate: every policy of ``dynamics``, paired with the plan made once."""
    tables = {}
    for place in dict.fromkeys((run["task"], run["budget"], run["rate"]) for run in runs):
        arms: dict[str, dict[int, Run]] = {}
        for run in runs:
            if (run["task"], run["budget"], run["rate"]) == place:
                arms.setdefault(run["arm"], {})[run["seed"]] = run
        once = {seed: _loss(run) for seed, run in arms.get("once", {}).items()}
        rows = []
        for arm, own in arms.items():
            losses = {seed: _loss(run) for seed, run in own.items()}
            found = paired(losses, once) if arm != "once" and set(losses) & set(once) else None
            rows.append(
                [
                    arm,
                    f"{max(run['most_at_once'] for run in own.values()):,}",
                    f"{max(run['contributing'] for run in own.values()):,}",
                    f"{summarise(list(losses.values())).mean:.3f}",
                    str(len(own)),
                    f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]" if found else "",
                    ", ".join(f"{losses[seed] - once[seed]:+.3f}" for seed in losses if arm != "once" and seed in once),
                ]
            )
        task, budget, rate = place
        header = ["policy", "most that trained", "contributing", "loss", "n", "minus once, paired", "by seed"]
        tables[f"Budgets that move, {task}, {budget:,} parameters, rate {rate:g}"] = markdown(header, rows)
    return tables


def timed(runs: Sequence[Run], task: str = "") -> dict[str, str]:
    """Return a table for each budget: plans under limits on the time of a step, paired with the loosest limit."""
    tables = {}
    metric = "held out loss" if task else "test loss"
    for budget in sorted({run["budget"] for run in runs}):
        limits: dict[float, dict[int, Run]] = {}
        for run in runs:
            if run["budget"] == budget:
                limits.setdefault(float(run["variant"].partition("=")[2]), {})[run["seed"]] = run
        loosest = {seed: _loss(run) for seed, run in limits[max(limits)].items()}
        rows = []
        for limit, own in sorted(limits.items()):
            losses = {seed: _loss(run) for seed, run in own.items()}
            found = paired(losses, loosest) if limit != max(limits) and set(losses) & set(loosest) else None
            sizes = sorted({run["parameters"] for run in own.values()})
            shares = [run["about"]["step_share"] for run in own.values()]
            lowest = sorted({min(int(name.split(".")[1]) for name in run["ranks"]) for run in own.values()})
            summary = summarise(list(losses.values()))
            rows.append(
                [
                    f"{limit:.0%}",
                    f"{min(shares):.0%} to {max(shares):.0%}",
                    ", ".join(map(str, lowest)),
                    f"{sizes[0]:,} to {sizes[-1]:,}",
                    f"{summary.mean:.3f}",
                    _number(summary.sd),
                    str(len(own)),
                    _difference(found) if found else "",
                ]
            )
        header = ["limit", "step, predicted", "lowest block", "parameters", metric, "sd", "n", "minus the loosest"]
        tables[f"Time of a step, {task}{budget:,} parameters"] = markdown(header, rows)
    return tables


def _read(file: Path) -> list[Run]:
    return json.loads(file.read_text(encoding="utf-8"))["runs"] if file.is_file() else []


def tables_of(folder: Path) -> dict[str, str]:
    """Return every table of the results in a folder by its heading."""
    tables: dict[str, str] = {}
    worth = _read(folder / "worth.json")
    if worth:
        tables |= {"Every path alone": worths(worth), "Scores": correlations(worth, _read(folder / "left-out.json"))}
    curve = [run for run in _read(folder / "curve.json") if "budget" in run]
    for budget in sorted({run["budget"] for run in curve}):
        own = [run for run in curve if run["budget"] == budget]
        tables[f"WikiText-2, {budget:,} parameters"] = comparison(own, metric="test_loss")
    if curve:
        tables["WikiText-2, rates"] = rates_table(curve, metric="test_loss", by=["budget"])
    classify = _read(folder / "classify.json")
    for task, budget in sorted({(run["task"], run["budget"]) for run in classify}, reverse=True):
        own = [run for run in classify if (run["task"], run["budget"]) == (task, budget)]
        title = f"{task.upper()}, {budget:,} parameters"
        tables[title] = comparison(own, metric="held_out_loss", also=["test_loss", "test_accuracy"])
    if classify:
        tables["Classification, rates"] = rates_table(classify, metric="held_out_loss", by=["task", "budget"])
    tables |= ablations(
        [run for file in sorted(folder.glob("ablation*.json")) for run in _read(file)], [*curve, *classify]
    )
    tables |= moving(_read(folder / "dynamics.json"))
    trec = [run for run in classify if run["task"] == "trec"]
    for name, own, metric in (("WikiText-2", curve, "test_loss"), ("TREC", trec, "held_out_loss")):
        if runs := [run for run in own if not run.get("variant")]:
            tables[f"The whole space against its parts, {name}"] = markdown(*whole_against_parts(runs, metric))
            tables[f"Two seeds' choices, {name}"] = markdown(*seed_against_seed(runs, metric))
    tables |= timed([run for run in _read(folder / "timed.json") if "budget" in run])
    return tables | timed(_read(folder / "timed-classify.json"), "MRPC, ")


HEADED = re.compile(r"^### (.+)\n\n(?:\|.*\n)*\n*", re.MULTILINE)  # a heading, and the table under it


def put_in(pages: Mapping[Path, str], tables: Mapping[str, str]) -> dict[Path, str]:
    """Return pages with each table under its heading, in the place of the one that stood there.

    Raises:
        ValueError: No page has such a heading.
    """
    missing = set(tables) - {heading for page in pages.values() for heading in HEADED.findall(page)}
    if missing:
        raise ValueError(f"no page has a heading for {', '.join(sorted(missing))}: write '### TITLE' where it belongs")

    def filled(found: re.Match[str]) -> str:
        return f"### {found[1]}\n\n{tables[found[1]]}\n\n" if found[1] in tables else found[0]

    return {file: HEADED.sub(filled, page).rstrip("\n") + "\n" for file, page in pages.items()}


def main() -> None:
    """Print every table, or put them into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results/where-it-pays"))
    parser.add_argument("--into", type=Path, nargs="+", help="pages with the tables' headings")
    given = parser.parse_args()
    tables = tables_of(given.results) | kept_tables()
    if given.into:
        for file, page in put_in({file: file.read_text(encoding="utf-8") for file in given.into}, tables).items():
            write_text_atomic(file, page)
        return
    for title, table in tables.items():
        print(f"### {title}\n\n{table}\n")


if __name__ == "__main__":
    main()
