"""The tables: the better rate per arm, paired with the baseline, and worth against scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from studies.kept import kept_tables
from studies.where_it_pays.table import BY_GAIN, ablations, comparison, correlations, put_in, rates_table, tables_of

ROOT = Path(__file__).resolve().parents[2]


def run(arm: str, rate: float, seed: int, loss: float) -> dict[str, Any]:
    return {"arm": arm, "budget": 10, "rate": rate, "seed": seed, "test_loss": loss, "parameters": 9}


RUNS = [
    *(run("all-linear", 0.01, seed, 2.0 + seed) for seed in range(3)),
    *(run("all-linear", 0.03, seed, 3.0 + seed) for seed in range(3)),
    *(run("layer", 0.03, seed, 1.5 + seed) for seed in range(3)),
    run("layer", 0.01, 0, 0.1),  # the other seeds have not run yet
]


def test_comparison_pairs_each_arm_at_its_better_rate() -> None:
    lines = comparison(RUNS, metric="test_loss").splitlines()
    assert lines[2].startswith(
        "| layer | 9 | 0.03 (end of the grid; 0.01 is lower on 1) | 2.500 | 1.000 | 3 | -0.500 [-0.500, -0.500] |"
    )
    assert lines[3].startswith("| all-linear | 9 | 0.01 (end of the grid) | 3.000 | 1.000 | 3 |")


def test_what_an_arm_was_given_otherwise_tells_it_from_the_plain_one() -> None:
    changed = [{**each, "variant": "less", "test_loss": each["test_loss"] + 0.5} for each in RUNS[:3]]
    lines = comparison([*RUNS, *changed], metric="test_loss").splitlines()
    assert lines[4].startswith("| all-linear, less | 9 | 0.01 (the only one) | 3.500 | 1.000 | 3 | +0.500 [")


def test_rates_are_all_shown_with_their_number_of_runs() -> None:
    table = rates_table(RUNS, metric="test_loss", by=["budget"])
    assert "| 10 | layer | 0.100 (1) | 2.500 (3) |" in table


def test_correlations_are_of_the_fall_of_the_loss() -> None:
    losses = {"layers.0.q_proj": 4.0, "layers.0.v_proj": 3.0, "layers.1.q_proj": 3.5, "layers.0.res1": 1.0}
    values = {"layers.0.q_proj": 1.0, "layers.0.v_proj": 3.0, "layers.1.q_proj": 2.0, "layers.0.res1": 0.0}
    runs: list[dict[str, Any]] = [{"path": "base", "test_loss": 5.0}]
    runs += [{"path": name, "test_loss": loss} for name, loss in losses.items()]
    runs += [{"proxy": "grad_norm", "seed": 0, "seconds": 1.25, "values": values}]
    assert "| grad_norm | 0 | -0.20 | 1.00 | 1.2 |" in correlations(runs)
    lost = [("nothing", 2.0), ("layers.0.q_proj", 2.3), ("layers.0.v_proj", 2.2), ("layers.1.q_proj", 2.1)]
    without: list[dict[str, Any]] = [
        {"without": name, "seed": seed, "test_loss": loss + seed} for name, loss in lost for seed in range(2)
    ]
    told = correlations(runs, without).splitlines()
    assert told[0] == "| score | seed | all 4 | 3 linear | all 3, left out | 3 linear, left out | seconds |"
    assert told[2] == "| grad_norm | 0 | -0.20 | 1.00 | -0.50 | -0.50 | 1.2 |"


def test_ablations_are_paired_with_the_plan_by_gain_alone() -> None:
    about = {"predicted_gain": 0.5, "kept": 0.9}
    made = {"ranks": {"a": 1, "b": 1}, "about": about, "variant": BY_GAIN}
    plain = [{**run("joint-linear", 0.03, s, 2.0 + s), **made} for s in range(2)]
    changed = [{**row, "test_loss": row["test_loss"] + 0.1, "ranks": {"a": 1}, "variant": "less"} for row in plain]
    ((title, table),) = ablations(
        [{"arm": "base", "test_loss": 5.0}, *changed], [*plain, {**plain[0], "variant": "", "test_loss": 9.0}]
    ).items()
    assert title == "joint-linear, WikiText-2, 10 parameters, rate 0.03"
    assert table.splitlines()[2].startswith("| breadth=0 | 9 | 2.500 | 2 |  |  | 0.500 | 0.90 |")
    assert "| less | 9 | 2.600 | 2 | +0.100 [+0.100, +0.100] | 0.50 | 0.500 | 0.90 |" in table


def test_pages_get_their_tables_and_keep_the_rest() -> None:
    one, two = Path("one.md"), Path("two.md")
    pages = {one: "# Title\n\n### One\n\n| old |\n| --- |\n\nWords.\n", two: "### Two\n\n### Other\n\n| stays |\n"}
    assert put_in(pages, {"One": "| new |\n| --- |\n| 1 |", "Two": "| 2 |"}) == {
        one: "# Title\n\n### One\n\n| new |\n| --- |\n| 1 |\n\nWords.\n",
        two: "### Two\n\n| 2 |\n\n### Other\n\n| stays |\n",
    }
    with pytest.raises(ValueError, match="no page has a heading for Three"):
        put_in(pages, {"Three": "| 3 |"})


def test_the_pages_show_the_tables_of_the_results() -> None:
    files = [ROOT / "docs" / "where-it-pays.md", *sorted((ROOT / "docs" / "studies").glob("*.md"))]
    pages = {file: file.read_text(encoding="utf-8") for file in files}
    tables = tables_of(ROOT / "results" / "where-it-pays") | kept_tables(ROOT / "results" / "studies")
    assert put_in(pages, tables) == pages


def test_a_worth_that_is_not_whole_yet_makes_no_column() -> None:
    runs = [{"path": "base", "test_loss": 5.0}]
    runs += [{"path": f"layers.{i}.q_proj", "seed": 0, "test_loss": 4.0 + i} for i in range(4)]
    values = {f"layers.{i}.q_proj": float(-i) for i in range(4)}
    scores = [{"proxy": "newton", "seed": 0, "values": values, "seconds": 1.0}]
    left: list[dict[str, Any]] = [*scores]
    alone = correlations([*runs, *scores], left)
    assert alone.splitlines()[0] == "| score | seed | all 4 | 4 linear | seconds |"
    left += [{"without": f"layers.{i}.q_proj", "seed": 0, "test_loss": 3.0 - i} for i in range(2)]
    assert correlations([*runs, *scores], left) == alone  # no run with all of them to compare with
    left += [{"without": "nothing", "seed": 0, "test_loss": 2.0}]
    assert correlations([*runs, *scores], left) == alone  # two paths have no rank correlation
    left += [{"without": "layers.2.q_proj", "seed": 0, "test_loss": 2.5}]
    assert correlations([*runs, *scores], left).splitlines()[0].count("left out") == 2
