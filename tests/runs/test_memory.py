from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from rankwise.runs.memory import Meter, plan_memory, verdict
from rankwise.runs.recipes.recipe import Recipe, parse_recipe
from rankwise.runs.sizes import plan_recipe
from rankwise.runs.training.train import train

Make = Callable[..., Recipe]


def test_the_meter_counts_what_is_alive_and_its_peak() -> None:
    with Meter() as meter:
        first = torch.ones(1000)
        second = first.double()  # twice the size
        view = first[:10]
        assert meter.live == 4000 + 8000
        del first, second
        assert meter.live == 4000  # the view holds it
        del view
        torch.ones(10)
    assert (meter.live, meter.peak) == (0, 12000)


def test_the_meter_sees_what_autograd_keeps() -> None:
    layer = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Sigmoid())
    x = torch.ones(32, 64)
    with Meter() as meter:
        meter.ignore(layer)
        y = layer(x)  # the sigmoid keeps its output; its input is gone
        assert meter.live == y.numel() * 4
        y.sum().backward()
    assert meter.peak >= 2 * y.numel() * 4 + 64 * 64 * 4


@pytest.mark.parametrize("method", ["heterolora", "lora", "lor2c", "full", "adalora", "adapterdrop", "prefix"])
def test_a_plan_of_memory_has_every_part(make: Make, method: str) -> None:
    recipe = make(method, "text" if method == "prefix" else "mrpc")
    found = plan_memory(recipe)
    sizes = plan_recipe(recipe)
    assert found["gradients"] == sizes["gradient_bytes"]
    assert found["weights"] >= 4 * (sizes["base"] if method != "full" else 1)
    assert found["activations"] > 0
    step = found["activations"] + found["gradients"]
    rest = found["weights"] + found["adapter"] + found["optimizer"] + found["window"]
    assert found["total"] == rest + max(step, found["evaluation"])


@pytest.mark.parametrize("task", ["mrpc", "stsb", "copa", "text", "instruction"])
def test_more_rows_need_more_and_checkpointing_less(make: Make, task: str) -> None:
    few, many = (plan_memory(make("lora", task, training={"batch_size": n}))["activations"] for n in (4, 32))
    assert 4 * few < many < 10 * few
    saved = plan_memory(make("lora", task, training={"batch_size": 32, "gradient_checkpointing": True}))
    assert saved["activations"] < many


def test_four_bits_take_a_fraction_of_the_weights(make: Make) -> None:
    dense, quantised = (
        plan_memory(parse_recipe({**make("lora").to_dict(), "model": {**make("lora").to_dict()["model"], **more}}))
        for more in ({}, {"load_in": "4bit"})
    )
    assert quantised["weights"] < 0.8 * dense["weights"]  # the embeddings stay


def test_the_head_of_own_files_is_the_runs(make: Make, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"bar bin,{'abc'[n % 3]}\n" for n in range(30)))
    own = {"train_file": str(tmp_path / "a.csv"), "text_columns": ["text"], "label_column": "label"}
    content = make("lora", training={"max_steps": 2}).to_dict()
    recipe = parse_recipe({**content, "data": own})
    found = train(recipe, tmp_path / "run").metrics["parameters"]
    assert plan_recipe(recipe)["head"] == found["head"]


def test_the_verdict_says_whether_it_fits() -> None:
    assert verdict({"total": 2**30}, 2.0 * 2**30) == "fits: about 1.00 GiB of 2.00 GiB"
    assert verdict({"total": 2**31}, 2.0**30).startswith("does not fit")
