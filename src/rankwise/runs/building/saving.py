"""A Trainer whose checkpoints are whole or do not count, and whose faults say which file is damaged."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors import SafetensorError
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from rankwise.runs.checkpoints import AGAIN, PICKLE_ERRORS, checkpoints, remove


class WholeCheckpoints:
    """Mixed into a Trainer.

    Saving begins without what an earlier, interrupted save left at that step. Continuing sets the learning rates to
    what the schedule says at that step, ``lr(t) = lr f(t; T)`` with the length ``T`` of *this* training: Trainer would
    make the first step with the rate that the checkpoint ended with, which is 0 at the end of a linear schedule.
    """

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train an epoch. From a checkpoint of the last step, Trainer would make one more than it was asked for."""
        trainer: Any = super()
        mine: Any = self
        if mine.state.global_step >= mine.state.max_steps:
            mine.control.should_training_stop = True
            return
        trainer._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log whenever a checkpoint is due: what continues from it begins a new mean of the training loss."""
        trainer: Any = super()
        mine: Any = self
        mine.control.should_log = mine.control.should_log or mine.control.should_save
        trainer._maybe_log_save_evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint; one that fails says where and what to do."""
        trainer: Any = super()
        mine: Any = self
        folder = Path(mine.args.output_dir) / f"checkpoint-{mine.state.global_step}"
        if mine.args.should_save and folder in checkpoints(folder.parent):
            remove(folder)
        PartialState().wait_for_everyone()
        with written("checkpoint", folder, "from the checkpoint before"):
            trainer._save_checkpoint(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        trainer: Any = super()
        mine: Any = self
        with _named(checkpoint, "optimizer.pt or scheduler.pt"):
            trainer._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        schedule = getattr(mine.lr_scheduler, "scheduler", mine.lr_scheduler)  # accelerate wraps it
        if isinstance(schedule, LambdaLR):
            for group, base, factor in zip(
                schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
            ):
                group["lr"] = base * factor(schedule.last_epoch)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        trainer: Any = super()
        with _named(checkpoint, "rng_state.pth"):
            trainer._load_rng_state(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        trainer: Any = super()
        with _named(checkpoint, "scaler.pt"):
            trainer._load_scaler(checkpoint)


@contextmanager
def written(what: str, place: Path, goes_on: str) -> Iterator[None]:
    """Say what could not be written, where, and how the run goes on: a disk is no mistake of the user's.

    Args:
        what: What is written.
        place: Its file or folder.
        goes_on: From where ``--resume`` does.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = getattr(error, "errno", None) or errno.EIO
        raise OSError(
            number,
            f"the {what} could not be written ({error}); if the disk is full make room, then continue with --resume "
            f"{goes_on}",
            str(place),
        ) from error


@contextmanager
def _named(checkpoint: str | None, file: str) -> Iterator[None]:
    """Say which file an error is about, and not what torch advises: to load it unprotected."""
    try:
        yield
    except PICKLE_ERRORS as error:
        reason = str(error) if isinstance(error, ValueError) else type(error).__name__
        raise ValueError(
            f"{checkpoint}: {file} is damaged or of another training ({reason}): {AGAIN}, or delete it to continue "
            "from the one before"
        ) from error


def with_whole_checkpoints(trainer_class: type[Trainer]) -> type[Trainer]:
    """Return the class with ``WholeCheckpoints`` mixed in."""
    return type(trainer_class.__name__, (WholeCheckpoints, trainer_class), {})
