from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.commands import call, small_recipe

from rankwise_exits import RUN_FAILED, USER_ERROR

COMMANDS = (
    *("demo", "init", "recipes", "train", "score", "plan", "ranks", "export", "predict", "evaluate", "runs", "report"),
    *("study", "tune"),
)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return small_recipe(tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert f"rankwise {command}" in " ".join(result.output.split())


def test_help_imports_nothing_heavy() -> None:
    code = "import rankwise_cli, sys; print([name for name in ('torch', 'peft', 'rankwise') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_and_version() -> None:
    assert all(command in call("--help").output for command in COMMANDS)
    assert call("--version").output.startswith("rankwise ")


def test_train_score_plan_export(recipe: Path, tmp_path: Path) -> None:
    run, plain = tmp_path / "run", tmp_path / "plain"
    trained = call("train", recipe, "--out", run, "--set", "seed=3")
    assert trained.exit_code == 0, trained.output
    assert "dev_selected" in trained.output
    assert yaml.safe_load((run / "config.yaml").read_text())["seed"] == 3
    again = call("train", recipe, "--out", run, "--set", "seed=3", "--resume")
    assert again.exit_code == 0
    assert "finished already" in again.output
    assert "layers.1.value" in call("score", recipe).output
    assert "optimizer bytes" in call("plan", recipe).output
    assert call("export", run, plain).exit_code == 0
    assert (plain / "adapter_config.json").is_file()


@pytest.mark.parametrize("space", ["linear", "all"])
def test_ranks_prints_the_plan_and_a_script_that_runs(recipe: Path, space: str) -> None:
    limited = ("--time-limit", "9") if space == "linear" else ()
    said = call("ranks", recipe, "--budget", "800", "--batches", "4", "--space", space, *limited)
    assert said.exit_code == 0, said.output
    table, script = re.split(r"\n\n(?=from )", said.output, maxsplit=1)
    assert table.startswith("Rank of each projection and kind by block")
    assert re.search(r"[\d,]+ of 800 parameters; predicted gain", table)
    assert re.search(r"two halves of the batches: overlap \d\.\d\d, \d+% of the gain kept", table)
    assert re.search(r"planned in \d+\.\d s with \d+ passes", table)
    assert ("backward pass down to block" in table) is bool(limited)
    made: dict[str, Any] = {}
    exec(script, made)
    spent = sum(p.numel() for name, p in made["model"].named_parameters() if ".lora_" in name)
    assert f"{spent:,} of 800 parameters" in table


def test_ranks_with_a_folder_names_it_and_prints_no_script(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "planned"
    said = call("ranks", recipe, "--budget", "800", "--batches", "4", "--space", "all", "--out", out)
    assert said.exit_code == 0, said.output
    assert "adapter to start from, plan and snippets: " in said.output
    assert "get_peft_model" not in said.output
    assert "get_peft_model" in (out / "snippets.md").read_text()


def test_the_default_folder_is_named_after_the_recipe(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("train", recipe).exit_code == 0
    assert (tmp_path / "runs" / "small-seed0" / "metrics.json").is_file()


def test_a_dry_run_keeps_nothing(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("train", recipe, "--dry-run").exit_code == 0
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "gone.yaml"), "no recipe at gone.yaml"),
        (("train", "RECIPE", "--set", "training.epoch=3"), "did you mean 'epochs'?"),
        (("train", "RECIPE", "--set", "training"), "must look like key=value"),
        (("train", "RECIPE", "--set", "method.proxy=grad_nrom"), "did you mean 'grad_norm'?"),
        (("train", "RECIPE", "--set", "method.budget=1.5"), "budget=1.5"),
        (("train", "RECIPE", "--set", "method.target_modules=[valeu]"), "value"),
        (("train", "RECIPE", "--out", "OUT", "--resume"), "holds no run"),
        (("score", "RECIPE", "--set", "data.data_dir=gone"), "gone"),
        (("plan", "RECIPE", "--set", "model.name=./gone"), "no such folder"),
        (("export", "gone", "OUT"), "holds no run"),
        (("evaluate", "gone", "--task", "drop"), "holds no run"),
        (("evaluate", "gone"), "nothing to evaluate on: give --task, --task-file or --suite (paper)"),
        (("evaluate", "gone", "--suite", "papers"), "did you mean 'paper'?"),
        (("evaluate", "gone", "--task", "a", "--shots", "1", "--shots", "2"), "2 --shots for 1"),
    ],
)
def test_mistakes_give_one_line_and_exit_code_2(
    recipe: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    places = {"RECIPE": str(recipe), "OUT": str(tmp_path / "out")}
    result = call(*(places.get(argument, argument) for argument in arguments))
    assert result.exit_code == USER_ERROR, result.output
    assert words in result.output
    assert result.output.startswith("Error: ")
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_a_classifier_is_not_evaluated(recipe: Path, tmp_path: Path) -> None:
    assert call("train", recipe, "--out", tmp_path / "run").exit_code == 0
    refused = call("evaluate", tmp_path / "run", "--task", "drop", "--shots", 3)
    assert refused.exit_code == USER_ERROR
    assert "trained a classifier (task 'rte')" in refused.output


def test_a_second_run_must_be_asked_for(recipe: Path, tmp_path: Path) -> None:
    assert call("train", recipe, "--out", tmp_path / "run").exit_code == 0
    refused = call("train", recipe, "--out", tmp_path / "run")
    assert refused.exit_code == USER_ERROR
    assert "--resume" in refused.output
    assert call("train", recipe, "--out", tmp_path / "run", "--overwrite").exit_code == 0


def test_a_run_that_fails_gives_exit_code_1(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("rankwise.runs.training.train.train", broken)
    result = call("train", recipe, "--out", tmp_path / "run")
    assert result.exit_code == RUN_FAILED
    assert result.output == "Error: out of memory\n"


def test_debug_shows_where(recipe: Path) -> None:
    result = call("train", recipe, "--set", "sede=1", "--debug")
    assert isinstance(result.exception, ValueError)


@pytest.mark.slow
def test_the_module_runs_as_a_process() -> None:
    done = subprocess.run([sys.executable, "-m", "rankwise_cli", "plan", "gone.yaml"], capture_output=True, text=True)
    assert done.returncode == USER_ERROR
    assert "no recipe at gone.yaml" in done.stderr


def test_a_finished_run_is_named_with_the_brackets_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(Path(__file__).resolve().parent / "data" / "version-0.1" / "lor2c", tmp_path / "room")
    monkeypatch.chdir(tmp_path / "room")
    (tmp_path / "room" / "finished").rename(tmp_path / "room" / "[red]run")
    said = call("train", "[red]run/config.yaml", "--out", "[red]run", "--resume")
    assert said.exit_code == 0, said.output
    assert "[red]run is finished already" in said.output
    assert "adapter, metrics and checkpoints: [red]run" in said.output
