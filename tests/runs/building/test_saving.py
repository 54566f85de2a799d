"""Checkpoints that are whole or do not count: what saving clears away, and what an error of a file is told as."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch.optim.lr_scheduler import LambdaLR, StepLR
from transformers import Trainer

from rankwise.runs.building.saving import WholeCheckpoints, with_whole_checkpoints

HOOKS = (
    "_run_epoch",
    "_maybe_log_save_evaluate",
    "_save_checkpoint",
    "_load_optimizer_and_scheduler",
    "_load_rng_state",
    "_load_scaler",
)


class Base:
    """What of Trainer these methods build on: each notes its call, or fails as it is told."""

    def __init__(self, folder: Path, error: Exception | None = None, *, step: int = 4) -> None:
        self.args = SimpleNamespace(output_dir=str(folder), should_save=True)
        self.state = SimpleNamespace(global_step=step, max_steps=6)
        self.control = SimpleNamespace(should_training_stop=False, should_log=False, should_save=False)
        self.calls: list[tuple[str, Any]] = []
        self.error = error
        self.lr_scheduler: Any = None

    def _did(self, name: str, *told: Any) -> None:
        self.calls.append((name, told))
        if self.error is not None:
            raise self.error

    def _run_epoch(self, *told: Any) -> None:
        self._did("_run_epoch", *told)

    def _maybe_log_save_evaluate(self, *told: Any) -> None:
        self._did("_maybe_log_save_evaluate", *told)

    def _save_checkpoint(self, *told: Any) -> None:
        self._did("_save_checkpoint", *told)

    def _load_optimizer_and_scheduler(self, *told: Any) -> None:
        self._did("_load_optimizer_and_scheduler", *told)

    def _load_rng_state(self, *told: Any) -> None:
        self._did("_load_rng_state", *told)

    def _load_scaler(self, *told: Any) -> None:
        self._did("_load_scaler", *told)


class Whole(WholeCheckpoints, Base):
    pass


def test_each_method_is_one_that_trainer_calls() -> None:
    assert {name for name in vars(WholeCheckpoints) if name.startswith("_") and "__" not in name} == set(HOOKS)
    mixed = with_whole_checkpoints(Trainer)
    assert mixed.__name__ == "Trainer"
    assert mixed.__mro__[1:3] == (WholeCheckpoints, Trainer)
    for name in HOOKS:
        assert callable(getattr(Trainer, name))
        assert getattr(mixed, name) is getattr(WholeCheckpoints, name)


@pytest.mark.parametrize(("saves", "due"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_checkpoint_ends_the_mean_of_the_logged_loss(tmp_path: Path, saves: bool, due: bool) -> None:
    trainer = Whole(tmp_path)
    trainer.control.should_save, trainer.control.should_log = saves, due
    trainer._maybe_log_save_evaluate("loss")
    assert trainer.control.should_log == (saves or due)
    assert trainer.calls == [("_maybe_log_save_evaluate", ("loss",))]


@pytest.mark.parametrize(("step", "ran"), [(4, True), (6, False), (7, False)])
def test_after_the_last_step_no_epoch_is_begun(tmp_path: Path, step: int, ran: bool) -> None:
    trainer = Whole(tmp_path, step=step)
    trainer._run_epoch("epoch")
    assert trainer.calls == ([("_run_epoch", ("epoch",))] if ran else [])
    assert trainer.control.should_training_stop == (not ran)


@pytest.mark.parametrize("should_save", [True, False])
def test_what_an_interrupted_save_left_is_cleared_by_the_process_that_saves(tmp_path: Path, should_save: bool) -> None:
    for name in ("checkpoint-2", "checkpoint-4", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half.bin").touch()
    trainer = Whole(tmp_path)
    trainer.args.should_save = should_save
    trainer._save_checkpoint("model", None)
    assert trainer.calls == [("_save_checkpoint", ("model", None))]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["checkpoint-2", *([] if should_save else ["checkpoint-4"]), "other"]


@pytest.mark.parametrize(
    ("error", "number", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC, "[Errno 28] No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied"), errno.EACCES, "[Errno 13] Permission denied"),
        (SafetensorError("I/O error"), errno.EIO, "I/O error"),
        (RuntimeError("PytorchStreamWriter failed"), errno.EIO, "PytorchStreamWriter failed"),
    ],
    ids=["full", "forbidden", "safetensors", "torch"],
)
def test_a_save_that_fails_says_where_why_and_what_to_do(
    tmp_path: Path, error: Exception, number: int, reason: str
) -> None:
    with pytest.raises(OSError, match="make room") as caught:
        Whole(tmp_path, error)._save_checkpoint()
    found = caught.value
    assert (found.errno, found.filename) == (number, str(tmp_path / "checkpoint-4"))
    assert found.strerror is not None
    assert found.strerror.startswith(f"the checkpoint could not be written ({reason}); ")
    assert found.strerror.endswith("continue with --resume from the checkpoint before")
    assert found.__cause__ is error


def test_a_mistake_of_the_program_is_none_of_the_disk(tmp_path: Path) -> None:
    error = KeyError("x")
    with pytest.raises(KeyError) as caught:
        Whole(tmp_path, error)._save_checkpoint()
    assert caught.value is error


LOADS = {
    "_load_optimizer_and_scheduler": "optimizer.pt or scheduler.pt",
    "_load_rng_state": "rng_state.pth",
    "_load_scaler": "scaler.pt",
}


@pytest.mark.parametrize("method", LOADS)
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (pickle.UnpicklingError("re-run torch.load with weights_only=False"), "UnpicklingError"),
        (RuntimeError("set weights_only=False"), "RuntimeError"),
        (KeyError("state"), "KeyError"),
        (ValueError("group sizes differ"), "group sizes differ"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_file_that_can_not_be_read_is_named_and_no_protection_is_turned_off(
    tmp_path: Path, method: str, error: Exception, reason: str
) -> None:
    with pytest.raises(ValueError, match="copy the checkpoint again") as caught:
        getattr(Whole(tmp_path, error), method)("checkpoint-4")
    said = str(caught.value)
    assert said.startswith(f"checkpoint-4: {LOADS[method]} is damaged or of another training ({reason}): ")
    assert said.endswith("or delete it to continue from the one before")
    assert "weights_only" not in said
    assert caught.value.__cause__ is error


def scheduled(folder: Path, schedule: type[Any] = LambdaLR, **fields: Any) -> tuple[Whole, torch.optim.Optimizer]:
    """A trainer whose optimizer has two groups with rates of their own, as a checkpoint left them at 0."""
    first, second = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    groups: list[dict[str, Any]] = [{"params": [first], "lr": 0.5}, {"params": [second], "lr": 2.0}]
    optimizer = torch.optim.SGD(groups)
    trainer = Whole(folder)
    trainer.lr_scheduler = schedule(optimizer, **fields)
    trainer.lr_scheduler.last_epoch = 4
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    return trainer, optimizer


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_longer_schedule_says_the_rate_of_every_group(tmp_path: Path, wrapped: bool) -> None:
    trainer, optimizer = scheduled(tmp_path, lr_lambda=lambda step: 1 - step / 8)
    if wrapped:  # as accelerate does
        trainer.lr_scheduler = SimpleNamespace(scheduler=trainer.lr_scheduler)
    trainer._load_optimizer_and_scheduler("checkpoint-4")
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 1.0]


def test_without_a_checkpoint_or_with_another_kind_of_schedule_the_rates_stay(tmp_path: Path) -> None:
    trainer, optimizer = scheduled(tmp_path, lr_lambda=lambda step: 1.0)
    trainer._load_optimizer_and_scheduler(None)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]
    other, optimizer = scheduled(tmp_path, StepLR, step_size=2)
    other._load_optimizer_and_scheduler("checkpoint-4")
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]
