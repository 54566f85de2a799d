"""Cells of a study as they lie in its folder once they have ended, without anything being trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rankwise.study.folder import StudyFolder
from rankwise.study.grid import Rates
from rankwise.study.plan import Cell, Group, Seeds, Study

RECIPE: dict[str, Any] = {"model": {"name": "m"}, "data": {"task": "mrpc"}, "method": {"name": "lora", "r": 4}}


def two_arms(rates: Rates | None = None, *, report: Sequence[int] = (7, 8), **changes: Any) -> Study:
    """A study of the arms ``a`` and ``b``; a key of ``changes`` is an arm, its value a recipe in place of its own."""
    arms = {"a": RECIPE, "b": RECIPE, **changes}
    groups = [Group(arm=arm, point={}, content=content, rates=rates) for arm, content in arms.items()]
    seeds = Seeds(choose=[0] if rates else [], report=list(report))
    return Study(title="MRPC", groups=groups, seeds=seeds, baseline="a")


def started(root: Path, study: Study | None = None) -> StudyFolder:
    """The folder of a study that has begun."""
    folder = StudyFolder(root)
    folder.start(study or two_arms(), "rankwise study run study.yaml")
    return folder


def finish(folder: StudyFolder, cell: Cell, loss: float, *, seconds: float = 60.0, **splits: dict[str, float]) -> None:
    """Write the figures of a finished run; its dev loss at the last epoch is twice that of the selected one."""
    run = folder.run(cell)
    run.root.mkdir(parents=True, exist_ok=True)
    run.config.write_text(yaml.safe_dump(cell.content))
    held = splits or {"dev": {"loss": loss, "accuracy": 0.5}}
    last = {name: {**split, "loss": 2 * split["loss"]} for name, split in held.items()}
    figures = {
        **{"model": "m", "task": "mrpc", "task_type": "SEQ_CLS", "model_arguments": {}, "method": "lora"},
        **{"seed": cell.seed, "headline": "accuracy", "parameters": {"trainable": 8, "head": 2, "total": 100}},
        "metrics": {"last": {"step": 4, "epoch": 1.0, **last}, "dev_selected": {"step": 2, "epoch": 0.5, **held}},
        "seconds": {"train": seconds, "search": 0.0, "search_share": 0.0},
    }
    run.metrics.write_text(json.dumps(figures))
