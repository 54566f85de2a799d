"""The figures of a run: metrics of each split, parameter counts, seconds, what was chosen."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from torch import nn
from transformers import Trainer

import rankwise
from rankwise.baselines.adalora import kept_parameters
from rankwise.report.structure import words
from rankwise.rules import records
from rankwise.rules.records import Record
from rankwise.runs.building.job import Job
from rankwise.runs.building.models import is_head

Figures = dict[str, Any]
PACKAGES = ("rankwise", "torch", "transformers", "peft", "accelerate", "datasets", "trl")
# Trainer's own timings: no property of the model.
TIMINGS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


def plain(metrics: dict[str, Any], prefix: str) -> Figures:
    """Return a Trainer's metrics without their prefix and timings."""
    stripped = {key.removeprefix(f"{prefix}_"): value for key, value in metrics.items() if key.startswith(f"{prefix}_")}
    return {key: value for key, value in stripped.items() if key not in TIMINGS}


def dev_by_epoch(log_history: list[dict[str, Any]]) -> list[Figures]:
    """Return the dev figures of every evaluation during training."""
    return [
        {"epoch": entry["epoch"], "step": entry["step"], **plain(entry, "eval")}
        for entry in log_history
        if "eval_loss" in entry and "epoch" in entry
    ]


def training_log(log_history: list[dict[str, Any]]) -> list[Figures]:
    """Return the training loss and the learning rate as Trainer logged them, for the curves of a report."""
    kept = ("step", "epoch", "loss", "learning_rate")
    return [{key: entry[key] for key in kept if key in entry} for entry in log_history if "loss" in entry]


def measure(trainer: Trainer, job: Job, step: int) -> Figures:
    """Evaluate the model as it stands (after ``step`` steps) on validation; dev comes from the log where it is."""
    by_step = {entry["step"]: entry for entry in dev_by_epoch(trainer.state.log_history)}
    dev = {key: value for key, value in by_step.get(step, {}).items() if key not in ("epoch", "step")}
    if not dev and job.data.dev is not None:
        dev = plain(trainer.evaluate(metric_key_prefix="dev"), "dev")
    splits = {} if job.data.validation is None else {"validation": job.data.validation}
    epoch = by_step[step]["epoch"] if step in by_step else trainer.state.epoch
    return {
        "step": step,
        "epoch": epoch,
        "dev": dev,
        **{
            name: plain(trainer.evaluate(split, metric_key_prefix=name), name)
            for name, split in {**splits, **job.data.extra}.items()
        },
    }


def chosen(job: Job) -> list[str]:
    """Return the paths that train: the enabled ones, or every module uniform LoRA sits on; a prefix sits on none."""
    if job.has_paths:
        return [name for name, path in rankwise.named_paths(job.model).items() if path.enabled]
    whole = job.recipe.method.name in ("full", "prefix")
    return [] if whole else list(job.model.base_model.targeted_module_names)


def parameters(job: Job) -> Figures:
    """Count parameters: what the method trains, the head apart, and the whole model."""
    # PEFT keeps the untrained head beside the trained one; it is not part of the model that runs.
    total = sum(size(p) for name, p in job.model.named_parameters() if "original_module" not in name.split("."))
    if job.has_paths:
        sizes = rankwise.plan(job.model)
        counts = {"resident": sizes.resident, "enabled": sizes.enabled, "contributing": sizes.contributing}
        return {"trainable": sizes.enabled, "head": sizes.head, **counts, "total": total}
    learnt = {name: p.numel() for name, p in job.model.named_parameters() if p.requires_grad}
    head = sum(count for name, count in learnt.items() if is_head(name))
    kept = {"kept": kept_parameters(job.model)} if job.recipe.method.name == "adalora" else {}
    return {"trainable": sum(learnt.values()) - head, "head": head, **kept, "total": total}


def size(parameter: nn.Parameter) -> int:
    """Return how many numbers a parameter holds; bitsandbytes packs two into each byte of a 4-bit one."""
    packed = 2 * parameter.element_size() if type(parameter).__name__ == "Params4bit" else 1
    return parameter.numel() * packed


def edits(history: Iterable[Record]) -> list[Figures]:
    """Return what each scheduled edit did, the dev loss just before and after it, and what trained from then on."""
    return [
        {
            "step": record.step,
            "due": record.due,
            "what": words(record),
            "edits": record.to_dict()["edits"],
            "enabled": record.counts["enabled"],
            "dev_loss": record.measured,
        }
        for record in records.edits(history)
    ]


def seconds(train: float, log_history: list[dict[str, Any]], searches: Iterable[Record]) -> Figures:
    """Return the run's wall time, and what of it dev evaluations and the search took."""
    search = sum(record.seconds + record.tap_seconds for record in searches)
    evaluate = sum(entry["eval_runtime"] for entry in log_history if "eval_runtime" in entry)
    return {"train": train, "evaluate": evaluate, "search": search, "search_share": search / max(train, 1e-9)}


def identity(job: Job, command: str | None) -> Figures:
    """Return what a figure needs to be told apart and made again."""
    recipe = job.recipe
    return {
        "model": recipe.model.name,
        "task": job.data.name,
        "task_type": job.data.task_type,
        "form": job.data.form,
        "answers_begin": job.data.answers_begin,
        "model_arguments": job.data.model_arguments(),
        "method": recipe.method.name,
        "seed": recipe.seed,
        "headline": job.data.headline,
        "command": command,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
