"""The benchmark scripts on models of two narrow blocks: each runs and writes what it says; no time is asserted."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import get_peft_model
from torch import nn

import rankwise
from rankwise.method.targets import all_linear

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = sorted(file.stem for file in FOLDER.glob("[a-z]*.py"))
SMALL = ["--model", "narrow-2"]
PATHS = 2 * 7  # projections of two blocks
WIDTHS = [(64, 64)] * 4 + [(64, 172)] * 2 + [(172, 64)]  # of one block

QUICK: dict[str, tuple[list[str], set[str]]] = {
    "candidates": (
        ["--blocks", "2"],
        {"a reallocation, a quarter of 20 paths"},
    ),
    "joint_choice": (["--examples", "6", "--sizes", "12/3,2001/2"], {"2 of 2,001 components"}),
    "plan_time": (SMALL, {"uniform LoRA", "layer of the last block"}),
    "prefix": (SMALL, {"rankwise, upper half, cache, later epochs, file"}),
    "searching": ([*SMALL, "--batches", "1"], {"a search by newton", "a search by synflow", "a reallocation"}),
    "singular_values": (["--width", "32", "--rank", "4", "--paths", "2"], {"SFS of 2 paths by their cores"}),
    "steps": ([*SMALL, "--only", "LoR2C|AdaLoRA|all weights"], {"floor", "LoR2C, r=8", "all weights"}),
    "sweeps": (["--depths", "1,2", "--counts", "3,14", "--blocks", "2"], {"floor", "rankwise, 14 paths"}),
    "tokens_per_second": ([*SMALL, "--r", "2"], {"base", "LoR2C r=2"}),
    "training_step": (SMALL, {"HeteroLoRA, window, exact"}),
}
SLOW: dict[str, tuple[list[str], set[str]]] = {  # in processes of their own
    "footprint": (
        [*SMALL, "--only", "rankwise, all linear, r=2|all weights"],
        {"rankwise, all linear, r=2", "all weights", "the base", "rankwise, all linear, r=2, merged"},
    ),
    "plan_memory": (["--models", "minilm", "--rows", "2"], {"minilm"}),
}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what imports a benchmark; how loud transformers is stays as it was."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(transformers.logging, "set_verbosity_error", lambda: None)
    monkeypatch.setattr(transformers.logging, "disable_progress_bar", lambda: None)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:  # names as plain as "steps" must not be found by others
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def run(load: Any, script: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    rounds = [] if script == "plan_memory" else ["--rounds", "1"]
    file = tmp_path / "found" / "out.json"
    monkeypatch.setattr(sys, "argv", [script, *options, *rounds, "--out", str(file)])
    load(script).main()
    return json.loads(file.read_text(encoding="utf-8"))


def check(found: Any, script: str, variants: set[str], told: str) -> None:
    assert found["command"].startswith(f"python benchmarks/{script}.py ")
    assert found["machine"]["cores"] >= 1
    assert {"python", "torch", "transformers", "peft", "rankwise"} <= set(found["versions"])
    assert "out" not in found["settings"]
    assert variants <= {row["variant"] for row in found["rows"]}
    for row in found["rows"]:
        assert row["what"] in told
        assert row["variant"] in told
        if "seconds" in row:
            assert row["seconds"] >= 0
            assert (row["ratio"] == 1) or row["variant"] != row["reference"]
            assert row["rounds"] == 1


def test_every_script_has_a_run_here() -> None:
    assert sorted([*QUICK, *SLOW]) == SCRIPTS


@pytest.mark.parametrize("script", QUICK)
def test_a_script_prints_a_table_and_writes_it(
    load: Any, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, variants = QUICK[script]
    check(run(load, script, options, tmp_path, monkeypatch), script, variants, capsys.readouterr().out)


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own_and_sizes_are_those_of_the_shapes(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, variants = SLOW["footprint"]
    found = run(load, "footprint", options, tmp_path, monkeypatch)
    check(found, "footprint", variants, capsys.readouterr().out)
    rows = {(row["what"].partition(": ")[2].split()[0], row["variant"]): row for row in found["rows"]}
    adapter, whole = (rows["a", name] for name in ("rankwise, all linear, r=2", "all weights"))
    numbers = sum(2 * (i + o) for i, o in 2 * WIDTHS)
    weights = 2 * 512 * 64 + 2 * sum(i * o for i, o in WIDTHS) + 5 * 64  # embeddings, head, projections, norms
    # AdamW keeps two numbers for each that trains, and a count of steps for each tensor, all in four bytes.
    assert adapter["optimizer_bytes"] == 4 * (2 * numbers + 2 * PATHS)
    assert whole["optimizer_bytes"] == 4 * (2 * weights + 2 + PATHS + 5)
    assert adapter["peak_MiB"] * 2**20 > 4 * weights
    assert whole["peak_MiB"] * 2**20 > 4 * 3 * weights
    assert rows["save_pretrained", "rankwise, all linear, r=2"]["bytes"] > 4 * numbers
    assert rows["save_pretrained", "all weights"]["bytes"] > 4 * weights


@pytest.mark.slow
def test_planned_memory_beside_measured(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, variants = SLOW["plan_memory"]
    found = run(load, "plan_memory", options, tmp_path, monkeypatch)
    check(found, "plan_memory", variants, capsys.readouterr().out)
    assert found["rows"][0]["planned_MiB"] > 87  # 22.7 million weights in four bytes
    assert found["rows"][0]["measured_MiB"] > 0


def test_rounds_are_interleaved_and_what_prepares_is_not_timed(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = load("_harness")
    calls: list[str] = []
    clock = iter(range(100))
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(clock))

    def prepare() -> None:
        calls.append("prepare")
        next(clock)  # would be a second more

    steps = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    found = harness.interleaved(steps, 2, prepare={"b": prepare}, warm=1, wall=True)
    assert calls == ["a", "prepare", "b"] * 3
    assert found == {"a": [1, 1], "b": [1, 1]}


def test_a_ratio_is_of_the_same_round_and_its_spread_the_quartiles(load: Any) -> None:
    table = load("_harness").Table("x.py", {})
    found = {"floor": [1.0, 2.0, 4.0, 1.0, 1.0], "ours": [2.0, 6.0, 4.0, 5.0, 4.0]}
    table.add("steps", found, "floor", kept_MiB={"ours": 3})
    ours = table.rows[1]
    assert (ours["ratio"], ours["ratio_quartiles"], ours["seconds"], ours["kept_MiB"]) == (3.0, [2.0, 4.0], 4.0, 3)
    assert "kept_MiB" not in table.rows[0]


def test_the_floor_goes_down_to_the_lowest_projections_and_no_further(load: Any) -> None:
    shapes, steps = load("_shapes"), load("steps")
    shape = shapes.shape_of("narrow-2")
    model = shapes.build(shape, "cpu")
    reached: list[str] = []
    step = steps.floor(model, shape, "cpu")
    for name in ("embed_tokens", "layers.0.input_layernorm", "layers.0.self_attn.q_proj", "layers.1.mlp.up_proj"):

        def keep(module: nn.Module, args: Any, output: torch.Tensor, name: str = name) -> None:
            if output.requires_grad:
                output.register_hook(lambda gradient: reached.append(name))

        model.model.get_submodule(name).register_forward_hook(keep)
    step()
    assert reached == ["layers.1.mlp.up_proj", "layers.0.self_attn.q_proj"]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_variants_share_the_frozen_weights_and_train_what_they_would_alone(load: Any) -> None:
    shapes, steps = load("_shapes"), load("steps")
    shape = shapes.shape_of("narrow-2")
    made = steps.variants(shape, "cpu", "rankwise, all linear, r=2$|all weights")
    one, whole = made["rankwise, all linear, r=2"].model, made["all weights"].model
    trainable = sum(p.numel() for p in one.parameters() if p.requires_grad)
    assert trainable == sum(2 * (i + o) for i, o in 2 * WIDTHS)
    frozen = [p for p in shapes.sharing(one).parameters() if not p.requires_grad]
    assert [id(p) for p in frozen] == [id(p) for p in one.parameters() if not p.requires_grad]
    assert all(p.requires_grad for p in whole.parameters())
    before = [p.clone() for p in frozen]
    made["all weights"]()
    made["rankwise, all linear, r=2"]()
    assert all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))


def test_paths_are_spread_evenly_with_the_lowest_among_them(load: Any) -> None:
    spread = load("sweeps").spread
    names = [str(number) for number in range(1001)]
    assert spread(names, 10) == ["0", "100", "200", "300", "400", "500", "600", "700", "800", "900"]
    assert len(set(spread(names, 1000))) == 1000
    with pytest.raises(AssertionError, match="give more --blocks"):
        spread(names[:3], 4)


def test_a_model_is_a_shape_or_a_folder(load: Any, tmp_path: Path) -> None:
    shapes = load("_shapes")
    shapes.narrow(1).save_pretrained(tmp_path)
    assert shapes.build(shapes.shape_of(str(tmp_path)), "cpu").config.num_hidden_layers == 1
    assert shapes.title_of(str(tmp_path), 1) == f"{tmp_path.name}, 8 x 128 tokens, 1 thread(s)"
    with pytest.raises(SystemExit, match=r"--model nowhere: give minilm, .*narrow-BLOCKS, or a folder"):
        shapes.shape_of("nowhere")


def test_a_reallocation_switches_from_a_quarter_to_another(load: Any) -> None:
    shapes, searching = load("_shapes"), load("searching")
    shape = shapes.shape_of("narrow-2")
    targets = all_linear(shapes.build(shape, "cpu"))
    config = rankwise.HeteroLoraConfig(r=2, target_modules=targets, mode="dynamic", proxy="constant")
    model = get_peft_model(shapes.build(shape, "cpu"), config)
    switch = searching.reallocating(model, searching.optimizer_of(model))
    names = list(rankwise.named_paths(model))
    seen = []
    for _ in range(3):
        seen.append({name for name, path in rankwise.named_paths(model).items() if path.enabled})
        switch()
    assert seen == [set(names[::4]), set(names[1::4]), set(names[::4])]
