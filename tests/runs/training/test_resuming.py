"""Runs that were stopped in every way go on from the newest whole checkpoint, or say which file is damaged."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

from rankwise.runs.folder import RunFolder
from rankwise.runs.recipes.recipe import Recipe
from rankwise.runs.training.train import train
from rankwise_exits import RUN_FAILED, explained

Make = Callable[..., Recipe]
ROOT = Path(__file__).resolve().parents[3]
CONSTANT = {"schedule": "constant", "warmup": 0}


class Stops(TrainerCallback):
    """A cable pulled before the given step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise RuntimeError("cable pulled")


class Rates(TrainerCallback):
    """Notes the learning rate of each step, by the number of steps before it."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen[state.global_step] = kwargs["optimizer"].param_groups[0]["lr"]


def stopped(recipe: Recipe, out: Path, step: int) -> Path:
    with pytest.raises(RuntimeError, match="cable pulled"):
        train(recipe, out, callbacks=[Stops(step)])
    return out / "checkpoints"


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(next((run / "adapter").glob("*model.safetensors")))


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(value.equal(b[name]) for name, value in a.items())


@pytest.mark.parametrize(
    ("method", "task"),
    [
        ("heterolora", "mrpc"),
        pytest.param("heterolora", "instruction", marks=pytest.mark.slow),
        pytest.param("lor2c", "mrpc", marks=pytest.mark.slow),
        pytest.param("adalora", "mrpc", marks=pytest.mark.slow),
        pytest.param("full", "mrpc", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_aloud(make: Make, tmp_path: Path, method: str, task: str) -> None:
    recipe = make(method, task)
    expected = train(recipe, tmp_path / "whole").metrics
    checkpoints = stopped(recipe, tmp_path / "run", 5)
    (checkpoints / "checkpoint-4" / "optimizer.pt").unlink()
    console = Console(record=True, width=500, file=open(os.devnull, "w"))  # noqa: SIM115
    resumed = train(recipe, tmp_path / "run", resume=True, console=console).metrics
    console.file.close()
    assert "passed over checkpoint-4: optimizer.pt is missing. Continuing from checkpoint-2" in console.export_text()
    assert resumed["metrics"] == expected["metrics"]
    assert same(tmp_path / "whole", tmp_path / "run")


def test_with_every_checkpoint_damaged_the_user_decides(make: Make, tmp_path: Path) -> None:
    checkpoints = stopped(make("heterolora"), tmp_path, 5)
    for step in (2, 4):
        (checkpoints / f"checkpoint-{step}" / "scheduler.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint to continue from: checkpoint-4: scheduler\.pt has 0 bytes.*"):
        train(make("heterolora"), tmp_path, resume=True)


def test_the_first_save_killed_half_way_begins_again(make: Make, tmp_path: Path) -> None:
    recipe = make("heterolora")
    train(recipe, tmp_path / "whole")
    checkpoints = stopped(recipe, tmp_path / "run", 3)
    (checkpoints / "checkpoint-2" / "rankwise_run.json").unlink()
    train(recipe, tmp_path / "run", resume=True)
    assert same(tmp_path / "whole", tmp_path / "run")


def test_killed_between_training_and_figures_it_makes_no_step_more(make: Make, tmp_path: Path) -> None:
    recipe = make("lor2c", training={"max_steps": 8})  # an epoch has six
    expected = train(recipe, tmp_path).metrics
    (tmp_path / "metrics.json").unlink()
    shutil.rmtree(tmp_path / "adapter")
    assert train(recipe, tmp_path, resume=True).metrics["metrics"] == expected["metrics"]


@pytest.mark.parametrize("content", ["{}", "[]", "nonsense", '{"metrics": ', "null", '{"model": 3}'])
def test_damaged_figures_name_their_file(make: Make, tmp_path: Path, content: str) -> None:
    train(make("lora"), tmp_path)
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match=r"metrics\.json is damaged.*: delete it and continue with --resume"):
        train(make("lora"), tmp_path, resume=True)
    (tmp_path / "metrics.json").unlink()
    assert train(make("lora"), tmp_path, resume=True).metrics["metrics"]["last"]["step"] == 6


@pytest.mark.parametrize(("section", "name", "value"), [("seconds", "train", "x"), ("parameters", "total", None)])
def test_a_figure_of_the_wrong_kind_is_told(make: Make, tmp_path: Path, section: str, name: str, value: Any) -> None:
    content = train(make("lora"), tmp_path).metrics
    content[section][name] = value
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"metrics\.json is damaged, {section}.*{name}"):
        RunFolder(tmp_path).figures()


@pytest.mark.parametrize("content", ["[]", "{}", "model: [", "model: 3", "\x00"])
def test_a_damaged_recipe_names_its_file(make: Make, tmp_path: Path, content: str) -> None:
    stopped(make("lora"), tmp_path, 3)
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"config\.yaml is damaged, it is no recipe"):
        train(make("lora"), tmp_path, resume=True)


@pytest.mark.parametrize(
    "method",
    ["heterolora", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lor2c", "lora", "full", "dylora"))],
)
def test_a_finished_run_trained_longer_is_the_longer_run(make: Make, tmp_path: Path, method: str) -> None:
    def recipe(steps: int) -> Recipe:
        edits = {"method": {"merges": 0}} if method == "lor2c" else {}  # their schedule spreads over the length
        return make(method, select="last", training={"max_steps": steps, **CONSTANT}, model={"dropout": 0.1}, **edits)

    train(recipe(4), tmp_path / "parts")
    longer = train(recipe(8), tmp_path / "parts", resume=True)
    straight = train(recipe(8), tmp_path / "straight")
    assert longer.trained
    assert longer.metrics["metrics"] == straight.metrics["metrics"]
    assert same(tmp_path / "parts", tmp_path / "straight")
    assert yaml.safe_load((tmp_path / "parts" / "config.yaml").read_text())["training"]["max_steps"] == 8


def test_edits_that_are_made_are_not_made_again(make: Make, tmp_path: Path) -> None:
    train(make("lor2c", training={"max_steps": 4, **CONSTANT}), tmp_path)
    before = (tmp_path / "search_history.jsonl").read_text()
    # over 24 steps the merge would be due after step 7
    train(make("lor2c", training={"max_steps": 24, "every": 8, **CONSTANT} | {"every": 2}), tmp_path, resume=True)
    assert (tmp_path / "search_history.jsonl").read_text() == before


def test_a_longer_schedule_goes_on_at_its_own_rate(make: Make, tmp_path: Path) -> None:
    linear = {"schedule": "linear", "warmup": 0}
    train(make("lora", training={"max_steps": 4, **linear}), tmp_path)
    rates = Rates()
    train(make("lora", training={"max_steps": 8, **linear}), tmp_path, resume=True, callbacks=[rates])
    assert rates.seen == {step: pytest.approx(1e-2 * (1 - step / 8)) for step in (4, 5, 6, 7)}


def test_epochs_may_grow_too(make: Make, tmp_path: Path) -> None:
    def recipe(epochs: float) -> Recipe:
        shape = {"epochs": epochs, "max_steps": -1, "evaluate": "epoch", "every": None}
        return make("heterolora", training={**shape, **CONSTANT}, select="last")

    train(recipe(1), tmp_path / "parts")
    train(recipe(2), tmp_path / "parts", resume=True)
    train(recipe(2), tmp_path / "straight")
    assert same(tmp_path / "parts", tmp_path / "straight")
    with pytest.raises(ValueError, match=r"training\.epochs=1\.0: checkpoint-\d+ comes after \d+ steps \(2 epochs\)"):
        train(recipe(1), tmp_path / "parts", resume=True)


def test_what_can_not_be_trained_longer_says_why(make: Make, tmp_path: Path) -> None:
    train(make("adalora"), tmp_path / "adalora")
    with pytest.raises(ValueError, match=r"max_steps=9: AdaLoRA takes ranks away on a schedule over the whole length"):
        train(make("adalora", training={"max_steps": 9}), tmp_path / "adalora", resume=True)
    assert (tmp_path / "adalora" / "metrics.json").exists()
    stopped(make("lor2c", training={"max_steps": 16}), tmp_path / "lor2c", 3)  # the merge is due after step 5
    with pytest.raises(ValueError, match=r"only 0 of 1 edits are made.*come to its end with --resume"):
        train(make("lor2c", training={"max_steps": 24}), tmp_path / "lor2c", resume=True)


def test_anything_else_is_refused_and_told_how_to_train_longer(make: Make, tmp_path: Path) -> None:
    stopped(make("lora"), tmp_path, 3)
    with pytest.raises(ValueError, match=r"another recipe.*learning_rate.*to train longer, resume with .*epochs=N"):
        train(make("lora", training={"learning_rate": 0.5}), tmp_path, resume=True)
    train(make("lora", training={"keep_checkpoints": None}), tmp_path, resume=True)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


def test_other_rows_are_refused(make: Make, tmp_path: Path) -> None:
    recipe = make("lora", training={"max_steps": 8})
    stopped(recipe, tmp_path / "run", 5)
    file = Path(str(recipe.data.data_dir)) / "mrpc" / "train.jsonl"
    before = file.read_text()
    file.write_text(before.replace("ban", "bun"))
    with pytest.raises(ValueError, match=r"checkpoint-4 was trained on other rows.*Put it back as it was, or"):
        train(recipe, tmp_path / "run", resume=True)
    file.write_text(before)
    assert train(recipe, tmp_path / "run", resume=True).trained


COMMAND = [sys.executable, "-m", "rankwise_cli", "train"]


def written(recipe: Recipe, tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    return file


def hears_signals() -> None:
    """What a shell starts in the background ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def newest_checkpoint(out: Path) -> int:
    """The step of the newest whole checkpoint, 0 where there is none."""
    marks = (out / "checkpoints").glob("checkpoint-*/rankwise_run.json")
    return max((int(mark.parent.name.split("-")[1]) for mark in marks), default=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_is_one_line_and_loses_nothing(make: Make, tmp_path: Path, number: int, code: int, word: str) -> None:
    recipe = make("heterolora", training={"max_steps": 400, "every": 2, **CONSTANT})
    out, file = tmp_path / "run", written(recipe, tmp_path)
    command = [*COMMAND, str(file), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=hears_signals)
    while newest_checkpoint(out) < 4:  # which one it is depends on when this looks: old ones are deleted
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(number)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == code, error
    assert error.splitlines()[-1] == f"Error: {word}; a run with a checkpoint goes on with --resume"
    assert "Traceback" not in error
    newest = newest_checkpoint(out)
    short = make("heterolora", training={"max_steps": newest + 2, "every": 2, **CONSTANT})
    train(short, out, resume=True)
    train(short, tmp_path / "straight")
    assert same(out, tmp_path / "straight")


def small_files_only() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(make: Make, tmp_path: Path) -> None:
    recipe = make("lora")
    file, out = written(recipe, tmp_path), tmp_path / "run"
    run = subprocess.run(
        [*COMMAND, str(file), "--out", str(out)],
        preexec_fn=small_files_only,  # the optimizer's state is larger
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert run.returncode == 1, run.stderr
    assert "Traceback" not in run.stderr
    assert "checkpoint-2" in run.stderr
    assert "could not be written" in run.stderr
    train(recipe, out, resume=True)
    train(recipe, tmp_path / "straight")
    assert same(out, tmp_path / "straight")


class FillsTheDisk(TrainerCallback):
    """No file may grow beyond 8,000 bytes once training is over: settings and tokenizer are smaller, weights larger."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_a_disk_that_is_full_at_the_end_costs_no_training(make: Make, tmp_path: Path, method: str) -> None:
    recipe, out = make(method), tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match=r"the trained model could not be written .*make room, .*--resume") as caught:
            train(recipe, out, callbacks=[FillsTheDisk()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(out / "adapter")
    assert isinstance(caught.value.__cause__, SafetensorError)  # by itself the user's mistake, with no file named
    with pytest.raises(typer.Exit) as ended, explained(debug=False):
        raise caught.value
    assert ended.value.exit_code == RUN_FAILED
    assert not (out / "adapter").exists()
    assert not (out / "metrics.json").exists()
    steps = Rates()
    resumed = train(recipe, out, resume=True, callbacks=[steps]).metrics
    assert steps.seen == {}
    assert resumed["metrics"] == train(recipe, tmp_path / "straight").metrics["metrics"]
    assert same(out, tmp_path / "straight")


def test_a_folder_that_can_not_be_written_to_is_told_before_anything_is_loaded(make: Make, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        (tmp_path / "file").write_text("no folder")  # what stops the superuser, whom no right stops
        with pytest.raises(NotADirectoryError, match="give an --out that you may write to"):
            train(make("lora"), tmp_path / "file" / "run")
        return
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="give an --out that you may write to"):
        train(make("lora"), tmp_path / "run")


CAPBSET_DROP, DAC_OVERRIDE = 24, 1  # of <linux/prctl.h> and <linux/capability.h>


def as_anybody() -> None:
    """Let rights bind the superuser too, in the program that is started next."""
    if os.geteuid() == 0 and ctypes.CDLL(None, use_errno=True).prctl(CAPBSET_DROP, DAC_OVERRIDE, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "the capability can't be dropped")


def rights_bind(folder: Path) -> bool:
    """Whether a program that is started so can be kept from writing into a folder by its rights."""
    folder.chmod(0o500)
    try:
        made = subprocess.run(["touch", str(folder / "made")], preexec_fn=as_anybody, capture_output=True, check=False)
        return made.returncode != 0
    except (subprocess.SubprocessError, OSError):
        return False
    finally:
        folder.chmod(0o700)


@pytest.mark.slow
@pytest.mark.parametrize("locked", [".", "checkpoints", "checkpoints/checkpoint-2"])
def test_a_run_that_can_not_be_written_to_is_one_line_and_loses_nothing(
    make: Make, tmp_path: Path, locked: str
) -> None:
    (tmp_path / "probe").mkdir()
    if not rights_bind(tmp_path / "probe"):
        pytest.skip("the superuser's capability can't be dropped here, and no rights bind it")
    recipe = make("lora")
    out = tmp_path / "run"
    stopped(recipe, out, 3)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    inside = [out / locked, *(each for each in (out / locked).rglob("*") if each.is_dir())]
    for folder in inside:
        folder.chmod(0o500)
    try:
        run = subprocess.run(
            [*COMMAND, str(written(recipe, tmp_path)), "--out", str(out), "--resume"],
            preexec_fn=as_anybody,
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
    finally:
        for folder in inside:
            folder.chmod(0o700)
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    line = run.stderr.splitlines()[-1]  # libraries beside ours may have said something before
    assert line.startswith(f"Error: [Errno 13] the run in {out} can't go on there, nothing of it was changed: make")
    assert line.endswith(f"{out / locked}'")
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    train(recipe, out, resume=True)
    train(recipe, tmp_path / "straight")
    assert same(out, tmp_path / "straight")


@pytest.mark.slow
def test_killed_runs_end_as_the_one_that_was_not() -> None:
    script = [sys.executable, str(ROOT / "tools" / "kill_test.py"), "--kills", "2"]
    run = subprocess.run(script, capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines()[-1] == "4 of 4 killed runs ended as the one that was not killed"
