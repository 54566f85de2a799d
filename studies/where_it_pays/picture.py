"""Loss against parameters, each arm at the better of the rates that were run: the picture of README and docs.

Run: python -m studies.where_it_pays.picture docs/loss_against_parameters.svg [--results FOLDER]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.where_it_pays.table import arms_of, at_better_rate

from rankwise.report.drawing import GREY, new_figure, save_figure

LINES = {
    "all-linear": ("uniform LoRA (below 5,780: rank 1 on random projections)", "0.45", "o"),
    "layer": ("LoR2C: a residual path in each block", "#B13A86", "s"),
    "joint-linear": ("a rank plan, plain LoRA", "#08519C", "^"),
    "joint-whole": ("a rank plan with block paths", "#15703F", "D"),
}


def curves(runs: Sequence[Mapping[str, Any]], least: int) -> dict[str, list[tuple[float, float, float, float]]]:
    """Return mean parameters, mean, smallest and largest test loss by arm, for budgets with enough seeds.

    Args:
        runs: The runs of ``curve.json``.
        least: How many seeds a point needs.
    """
    found: dict[str, list[tuple[float, float, float, float]]] = {arm: [] for arm in LINES}
    for budget in sorted({run["budget"] for run in runs}):
        for arm, rates in arms_of(run for run in runs if run["budget"] == budget).items():
            enough = {rate: own for rate, own in rates.items() if len(own) >= least}
            if arm in found and enough:
                _, own = at_better_rate(enough, "test_loss")
                losses = [run["test_loss"] for run in own.values()]
                size = sum(run["parameters"] for run in own.values()) / len(own)
                found[arm].append((size, sum(losses) / len(losses), min(losses), max(losses)))
    return found


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--results", type=Path, default=Path("results/where-it-pays"))
    parser.add_argument("--seeds", type=int, default=3, help="how many a point needs")
    given = parser.parse_args()
    content = json.loads((given.results / "curve.json").read_text(encoding="utf-8"))
    runs = [run for run in content["runs"] if "budget" in run and not run.get("variant")]
    figure = new_figure(
        7.2,
        4.3,
        "What a parameter buys, by where it goes",
        f"A LLaMA-type model of 260,000 weights on WikiText-2, 150 steps; each point the mean of {given.seeds} seeds "
        "or more at the better of the rates run, bars from the best to the worst seed",
    )
    axes = figure.subplots()
    drawn = curves(runs, given.seeds)
    for arm, points in drawn.items():
        label, colour, marker = LINES[arm]
        sizes, means, lows, highs = (list(column) for column in zip(*points, strict=True))
        bars = [
            [m - low for m, low in zip(means, lows, strict=True)],
            [h - m for m, h in zip(means, highs, strict=True)],
        ]
        axes.errorbar(sizes, means, bars, label=label, color=colour, marker=marker, capsize=3, linewidth=1.6)
    axes.set_xscale("log")
    least = min(size for points in drawn.values() for size, *_ in points)
    ticks = sorted({run["budget"] for run in runs if run["budget"] >= least})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("trained parameters")
    axes.set_ylabel("test loss per token")
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=GREY)
    axes.legend(frameon=False)
    save_figure(figure, given.out)


if __name__ == "__main__":
    main()
