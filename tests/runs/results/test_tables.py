from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from rich.table import Table

from rankwise.rules.records import SearchRecord
from rankwise.runs.results.predicting import answer_table
from rankwise.runs.results.tables import plan_table, result_table, score_table
from rankwise.runs.score import ScoreTable


def shown(table: Table) -> str:
    console = Console(record=True, width=160, quiet=False, file=io.StringIO())
    console.print(table)
    return " ".join(console.export_text().split())


def finished_run() -> dict[str, Any]:
    last = {"step": 4, "epoch": 2.0, "dev": {}, "validation": {"loss": 0.5, "accuracy": 0.75}}
    return {
        "method": "lora",
        "task": "mrpc",
        "seed": 3,
        "metrics": {"last": last, "dev_selected": {**last, "epoch": 1.0}, "per_epoch": []},
        "parameters": {"trainable": 73728, "head": 770, "total": 22000000},
        "seconds": {"train": 60.0, "search": 1.5, "search_share": 0.025},
    }


def test_results() -> None:
    text = shown(result_table(finished_run()))
    assert "lora on mrpc, seed 3" in text
    assert "0.7500" in text
    assert "73,728 trainable parameters" in text
    assert "1.5 s of them searching (2.5%)" in text


def test_a_narrow_screen_breaks_figures_and_keeps_them() -> None:
    console = Console(record=True, width=24, file=io.StringIO())
    console.print(result_table(finished_run()))
    rows = [line.split("│")[1:-1] for line in console.export_text().splitlines() if line.startswith("│")]
    columns = ["".join(cells).replace(" ", "") for cells in zip(*rows, strict=True)]
    assert columns == ["lastdev_selected", "2.001.00", "validationvalidation", "0.75000.7500", "0.50000.5000"]


def test_a_text_in_brackets_is_shown_as_it_is() -> None:
    asked = "see [red] wine [/b]"
    assert asked in shown(answer_table([{"text": asked, "[/b]": 0.5}]))
    assert asked in shown(plan_table({"targets": asked}))
    last = {"step": 4, "epoch": 2.0, asked: {"loss": 0.5}}
    metrics: dict[str, Any] = {
        "method": "lora",
        "task": asked,
        "seed": 3,
        "metrics": {"last": last, "dev_selected": last},
        "parameters": {"trainable": 1, "head": 1, "total": 2},
        "seconds": {"train": 60.0, "search": 1.5, "search_share": 0.025},
        "edits": [{"step": 1, "what": asked, "enabled": 1, "dev_loss": (None, None)}],
    }
    metrics["parameters"]["at_start"] = 1
    assert shown(result_table(metrics)).count(asked) == 4


def test_scores_fall_and_say_what_is_missing() -> None:
    record = SearchRecord(step=0, search=0, proxy="snip", score_on="weight", unscored=["b"], seconds=0.5)
    text = shown(score_table(ScoreTable({"a": None, "b": 0.25, "c": 0.5}, dict.fromkeys("abc", 100), ["c"], record)))
    assert text.index("0.5") < text.index("0.25 (unscored)") < text.index("not finite")
    assert "100 of 300 parameters chosen" in text


def test_plans() -> None:
    assert "73,728" in shown(plan_table({"method": "lora", "enabled": 73728}))
