"""Where a resumed run continues, and what it may do otherwise than before."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from rankwise.paths.path_set import path_set
from rankwise.rules.records import HISTORY_FILE, edits, record_of
from rankwise.runs.building.job import Job
from rankwise.runs.checkpoints import data_before, newest_whole, progress
from rankwise.runs.folder import RunFolder
from rankwise.search.checkpoint import STATE, SUMS, read_state

logger = logging.getLogger("rankwise")


def continued(folder: RunFolder, job: Job, data: str, console: Console | None) -> Path | None:
    """Return the newest whole checkpoint, and say which were passed over; None to begin at the beginning.

    Args:
        folder: The run's.
        job: What is run.
        data: The digest of its rows.
        console: Where to say it.

    Raises:
        ValueError: There are checkpoints, none of them is whole, and one was before: that is for the user to decide.
            Or the rows are not those it was trained on.
    """
    found, passed = newest_whole(folder.checkpoints, _needs(job))
    reasons = "; ".join(f"{checkpoint.name}: {fault.reason}" for checkpoint, fault in passed.items())
    if found is None and not all(fault.interrupted for fault in passed.values()):
        raise ValueError(
            f"{folder.checkpoints} holds no checkpoint to continue from: {reasons}. Copy the files again, or train "
            "from the start with --overwrite"
        )
    if found is not None and data_before(found) not in (None, data):
        raise ValueError(
            f"{found} was trained on other rows than the recipe gives now: what data.* names has changed, or the "
            "tokenizer, or a library that reads, cuts or packs. Put it back as it was, or train from the start with "
            "--overwrite or in another folder (of a study or a race: delete the run's folder, then --retry-failed)"
        )
    if passed:
        tell(f"passed over {reasons}. Continuing from {found.name if found else 'the start'}", console)
    return found


def _needs(job: Job) -> tuple[str, ...]:
    """Return the files that the method's own state lies in."""
    config = path_set(job.model).config if job.has_paths else None
    if config is None or not config.acts:
        return ()
    # After a choice of ranks nothing searches any more: its ranks are in the history, and no search is saved.
    return (HISTORY_FILE,) if config.undecided else (STATE, SUMS)


def check_length(job: Job, checkpoint: Path | None) -> None:
    """Refuse a length that is over already, or that a method can't be told now.

    Raises:
        ValueError: Says why, and what to do.
    """
    if checkpoint is None:
        return
    training = job.recipe.training
    steps, epochs = progress(checkpoint)
    asked = (
        f"training.max_steps={training.max_steps}" if training.max_steps > 0 else f"training.epochs={training.epochs}"
    )
    if steps > training.max_steps > 0 or (training.max_steps <= 0 and epochs > training.epochs + 1e-6):
        raise ValueError(
            f"{asked}: {checkpoint.name} comes after {steps} steps ({epochs:g} epochs) already; give a greater length, "
            "or start in another folder"
        )
    if job.recipe.method.name == "adalora":
        raise ValueError(
            f"{asked}: AdaLoRA takes ranks away on a schedule over the whole length, which can't change once it has "
            "begun: start in another folder"
        )
    if job.recipe.method.name == "lor2c":
        wanted = path_set(job.model).config.edits
        history = read_state(checkpoint)["history"] if wanted else []
        done = len(edits(map(record_of, history)))
        if done < wanted:
            raise ValueError(
                f"{asked}: only {done} of {wanted} edits are made, which are spread over the length that the run was "
                "started with: let it come to its end with --resume, then train longer"
            )


def tell_changes(changes: Mapping[str, tuple[Any, Any]], console: Console | None) -> None:
    """Say what a resumed run does otherwise from now on."""
    tell("; ".join(f"{key}: {there!r} -> {now!r}" for key, (there, now) in changes.items()), console)


def tell(text: str, console: Console | None) -> None:
    """Print a line, or log it where there is no console."""
    if console is None:
        logger.warning(text)
    else:
        console.print(f"[yellow]{escape(text)}[/]", soft_wrap=True, highlight=False)
