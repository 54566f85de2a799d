from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

import rankwise
from rankwise.runs.building.job import Job, build, make_trainer, training_arguments
from rankwise.runs.folder import RunFolder
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.recipe import Recipe
from rankwise.runs.training.train import train

Make = Callable[..., Recipe]
ALL = pytest.mark.parametrize("method", ["heterolora", "lora", "full"])


class Fails(TrainerCallback):
    """A cable pulled after the given step, before or after its checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise RuntimeError("cable pulled")


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(next((run / "adapter").glob("*model.safetensors")))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())


@ALL
def test_a_run_leaves_its_folder(make: Make, tmp_path: Path, method: str) -> None:
    out = tmp_path / "run"
    result = train(make(method, training={"report_to": ["tensorboard"]}), out, command="rankwise train x.yaml")
    parts = {path.name for path in out.iterdir()}
    searched = {"search_history.jsonl"} if method == "heterolora" else set()
    assert parts == {"config.yaml", "metrics.json", "adapter", "checkpoints", "tensorboard"} | searched
    assert result.metrics == json.loads((out / "metrics.json").read_text())
    found = result.metrics["metrics"]
    assert found["last"]["step"] == 6
    assert set(found["last"]["validation"]) == set(found["dev_selected"]["dev"]) == {"loss", "accuracy", "f1"}
    assert [entry["step"] for entry in found["per_epoch"]] == [2, 4, 6]
    best = max(found["per_epoch"], key=lambda entry: entry["accuracy"])
    assert found["dev_selected"]["step"] == best["step"]
    assert found["dev_selected"]["dev"] == {key: best[key] for key in ("loss", "accuracy", "f1")}
    assert result.metrics["command"] == "rankwise train x.yaml"
    assert 0 < result.metrics["seconds"]["evaluate"] < result.metrics["seconds"]["train"]
    assert list((out / "tensorboard").glob("events*"))


@pytest.mark.parametrize("task", ["copa", "stsb", "mnli", "text", "instruction", "sst2"])
def test_every_kind_of_task_trains(make: Make, tmp_path: Path, task: str) -> None:
    recipe = make("heterolora", task, training={"max_steps": 2})
    result = train(recipe, tmp_path / "run")
    last = result.metrics["metrics"]["last"]
    assert result.metrics["headline"] in last["validation"]
    assert ("validation_mismatched" in last) == (task == "mnli")
    assert result.metrics["searches"] >= 1


def test_parameters_and_seconds_of_a_search(make: Make, tmp_path: Path) -> None:
    metrics = train(make("heterolora"), tmp_path / "run").metrics
    history = [json.loads(line) for line in (tmp_path / "run" / "search_history.jsonl").read_text().splitlines()]
    assert [record["step"] for record in history] == [0, 2, 4, 6][: len(history)]
    assert len(history) == metrics["searches"] >= 3
    assert metrics["parameters"]["trainable"] == metrics["parameters"]["enabled"] == 512
    assert metrics["parameters"]["resident"] == 1024
    assert metrics["parameters"]["head"] == history[-1]["counts"]["head"]
    assert metrics["chosen"]["last"] == history[-1]["chosen"]
    assert metrics["seconds"]["search"] == pytest.approx(sum(r["seconds"] + r["tap_seconds"] for r in history))


def test_parameters_of_lora_and_full(make: Make, tmp_path: Path) -> None:
    lora = train(make("lora"), tmp_path / "lora").metrics
    assert lora["parameters"]["trainable"] == 1024
    assert len(lora["chosen"]["last"]) == 4
    full = train(make("full"), tmp_path / "full").metrics
    assert full["parameters"]["trainable"] + full["parameters"]["head"] == full["parameters"]["total"]
    assert full["parameters"]["head"] == lora["parameters"]["head"]


@ALL
@pytest.mark.parametrize("stop", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_uninterrupted_one(make: Make, tmp_path: Path, method: str, stop: int) -> None:
    recipe = make(method, model={"dropout": 0.1})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = train(recipe, whole).metrics
    with pytest.raises(RuntimeError, match="cable pulled"):
        train(recipe, parts, callbacks=[Fails(stop)])
    assert not (parts / "metrics.json").exists()
    resumed = train(recipe, parts, resume=True).metrics
    assert same(weights(whole), weights(parts))
    assert resumed["metrics"] == expected["metrics"]
    assert resumed["chosen"] == expected["chosen"]
    assert resumed["searches"] == expected["searches"]


def test_a_run_that_failed_before_a_checkpoint_starts_again(make: Make, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cable pulled"):
        train(make("lora"), tmp_path / "run", callbacks=[Fails(1)])
    resumed = train(make("lora"), tmp_path / "run", resume=True)
    again = train(make("lora"), tmp_path / "again")
    assert same(weights(resumed.out), weights(again.out))


def test_seeds(make: Make, tmp_path: Path) -> None:
    runs = [train(make("heterolora", seed=seed), tmp_path / str(n)).out for n, seed in enumerate((3, 3, 4))]
    assert same(weights(runs[0]), weights(runs[1]))
    assert not same(weights(runs[0]), weights(runs[2]))


@ALL
def test_select_says_which_checkpoint_is_saved(make: Make, tmp_path: Path, method: str) -> None:
    # A rate this high ruins the model after the first evaluation or two, so the best is not the last.
    for seed in range(10):
        changes: dict[str, Any] = {"training": {"learning_rate": 0.3}, "seed": seed}
        dev = train(make(method, select="dev", **changes), tmp_path / f"dev{seed}")
        picked = dev.metrics["metrics"]["dev_selected"]
        if picked["step"] < 6:
            break
    assert picked["step"] < 6
    checkpoint = RunFolder(dev.out).checkpoints / f"checkpoint-{picked['step']}"
    assert same(weights(dev.out), load_file(next(checkpoint.glob("*model.safetensors"))))
    last = train(make(method, select="last", **changes), tmp_path / "last")
    assert last.metrics["metrics"] == dev.metrics["metrics"]
    assert not same(weights(last.out), weights(dev.out))


def test_without_evaluation_the_last_is_all(make: Make, tmp_path: Path) -> None:
    recipe = make("lora", select="last", training={"evaluate": "never", "every": None})
    found = train(recipe, tmp_path / "run").metrics["metrics"]
    assert found["per_epoch"] == []
    assert found["dev_selected"] == found["last"]
    assert found["last"]["epoch"] == 1.0
    assert found["last"]["dev"]["accuracy"] >= 0


def test_a_finished_run_is_not_trained_again(make: Make, tmp_path: Path) -> None:
    first = train(make(), tmp_path / "run")
    again = train(make(), tmp_path / "run", resume=True)
    assert first.trained
    assert not again.trained
    assert again.metrics == first.metrics


def test_overwriting_waits_until_everything_is_loaded(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(make(), out)
    before = (out / "metrics.json").read_bytes()
    with pytest.raises(ValueError, match="already holds a run"):
        train(make(), out)
    with pytest.raises(ValueError, match="names no module"):
        train(make(method={"target_modules": ["qurey"]}), out, overwrite=True)
    with pytest.raises(ValueError, match=r"say it as training\.epochs"):
        train(make(training={"extra": {"num_train_epochs": 2}}), out, overwrite=True)
    with pytest.raises(ValueError, match="tinit=9 and tfinal=0 leave 6 steps"):  # found when training begins
        train(make("adalora", method={"tinit": 9}), out, overwrite=True)
    with pytest.raises(RuntimeError, match="cable pulled"):
        train(make(seed=1), out, overwrite=True, callbacks=[Fails(0)])
    assert (out / "metrics.json").read_bytes() == before
    assert not list(out.glob(".*"))
    train(make(seed=1), out, overwrite=True)
    assert (out / "metrics.json").read_bytes() != before


def test_a_start_that_fails_leaves_no_run(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tinit=9"):
        train(make("adalora", method={"tinit": 9}), tmp_path / "run")
    train(make("adalora"), tmp_path / "run")


def test_one_checkpoint_kept_is_the_best_and_the_newest(make: Make, tmp_path: Path) -> None:
    train(make(training={"keep_checkpoints": 1}), tmp_path / "run")
    kept = {folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()}
    assert "checkpoint-6" in kept
    assert len(kept) <= 2


def test_the_saved_adapter_is_the_one_that_was_measured(make: Make, tmp_path: Path) -> None:
    recipe = make("heterolora")
    result = train(recipe, tmp_path / "run")
    with quiet():
        job = build(recipe)
        loaded = PeftModel.from_pretrained(job.model.unload(), str(result.out / "adapter"))
    on = [name for name, path in rankwise.named_paths(loaded).items() if path.enabled]
    assert on == result.metrics["chosen"]["dev_selected"]
    other = RunFolder(tmp_path / "other")
    arguments = training_arguments(recipe, job.data, other.checkpoints)
    trainer = make_trainer(Job(recipe, job.data, loaded), arguments, other, [])
    measured = trainer.evaluate(job.data.validation, metric_key_prefix="validation")
    expected = result.metrics["metrics"]["dev_selected"]["validation"]
    assert measured["validation_loss"] == pytest.approx(expected["loss"], abs=1e-7)


def test_progress_goes_to_the_console_only(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(record=True, width=140, force_terminal=True, file=open(tmp_path / "screen", "w"))  # noqa: SIM115
    train(make(), tmp_path / "run", console=console)
    console.file.close()
    assert "dev accuracy" in console.export_text()
    assert capsys.readouterr().out == ""


def test_the_checkpoint_limit_keeps_the_best_and_the_newest(make: Make, tmp_path: Path) -> None:
    result = train(make(training={"every": 1}), tmp_path / "run")
    kept = {path.name for path in (result.out / "checkpoints").iterdir()}
    best = result.metrics["metrics"]["dev_selected"]["step"]
    assert kept >= {f"checkpoint-{best}", "checkpoint-6"}
    assert len(kept) == 2


@pytest.mark.parametrize("task", ["mrpc", "copa", "stsb", "text"])
def test_micro_batches_add_up_to_the_batch(make: Make, tmp_path: Path, task: str) -> None:
    steps = []
    for size, accumulation in ((4, 1), (2, 2)):
        shape = {"max_steps": 1, "every": 1, "batch_size": size, "accumulation": accumulation}
        recipe = make("lora", task, model={"dropout": 0}, training=shape)
        out = train(recipe, tmp_path / str(size)).out
        state = json.loads((out / "checkpoints" / "checkpoint-1" / "trainer_state.json").read_text())
        steps.append([state["log_history"][0][key] for key in ("loss", "grad_norm")])
    assert steps[0] == pytest.approx(steps[1], rel=1e-3)


def test_the_figures_count_the_rows_that_were_cut_and_left_out(make: Make, tmp_path: Path) -> None:
    """By hand, at 8 tokens: a prompt of p words and an answer of a words are 2 + p + a tokens."""

    def row(prompt: int, answer: int | None) -> dict[str, Any]:
        return {"prompt": "bar " * prompt, "completion": None if answer is None else "dot " * answer}

    short, cut, lost, empty = row(2, 1), row(2, 9), row(10, 1), row(2, None)
    parts = {"train_file": [*[short] * 10, *[cut] * 3, *[lost] * 2, empty], "validation_file": [short, short, cut]}
    for name, rows in parts.items():
        (tmp_path / name).with_suffix(".jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    files = {name: str((tmp_path / name).with_suffix(".jsonl")) for name in parts}
    own = {**files, "data_dir": None, "dev_fraction": 0, "max_length": 8, "missing": "drop", "allow_cut_answers": True}
    recipe = make(
        "lora", "chat", data=own, training={"max_steps": 2, "evaluate": "never", "every": None}, select="last"
    )
    with pytest.warns(UserWarning, match=r"split '(train|validation)': \d of \d+ answers are cut"):
        found = train(recipe, tmp_path / "run").metrics["data"]
    told = {"truncated": 5, "cut_answers": 3, "dropped": 2, "missing": 1}
    assert found["train"] == {"rows": 13, "tokens": {"median": 5, "longest": 8}, **told}
    told = {"truncated": 1, "cut_answers": 1, "dropped": 0, "missing": 0}
    assert found["validation"] == {"rows": 3, "tokens": {"median": 5, "longest": 8}, **told}
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["data"] == found
