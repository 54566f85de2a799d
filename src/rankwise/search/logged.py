"""What a search or its edits decided, as Trainer's loggers take it: numbers with the logs, pictures at the end."""

from __future__ import annotations

import io
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.integrations.integration_utils import MLflowCallback, TensorBoardCallback, WandbCallback

from rankwise.paths.path_set import PathSet
from rankwise.report import overlaps, plot_frequency, plot_structure
from rankwise.rules.records import edits, searches

logger = logging.getLogger("rankwise")
PREFIX = "rankwise/"


def figures(paths: PathSet) -> dict[str, float]:
    """Return the numbers to log.

    ``enabled`` and ``contributing`` parameters; ``on/KIND``, how many paths of each kind train; ``searches`` and
    ``edits`` so far, ``search_seconds``, what they took, collecting included; from the second search on ``overlap``,
    the share of the choice before that the last one kept.

    Args:
        paths: One adapter's paths.
    """
    counts, history = paths.counts(), paths.history
    on = Counter(path.kind for path in paths.enabled)
    kinds = dict.fromkeys(path.kind for path in paths.resident)
    told: dict[str, float] = {name: counts[name] for name in ("enabled", "contributing")}
    told |= {f"on/{kind}": on[kind] for kind in kinds}
    told |= {"searches": len(searches(history)), "edits": sum(len(record.edits) for record in edits(history))}
    told["search_seconds"] = sum(record.seconds + record.tap_seconds for record in history)
    if len(searches(history)) > 1:
        last = overlaps(searches(history)[-2:]).mean
        told |= {} if math.isnan(last) else {"overlap": last}
    return {PREFIX + name: value for name, value in told.items()}


def draw_at_the_end(trainer: Trainer, paths: PathSet, step: int) -> None:
    """Give TensorBoard, W&B and MLflow the heat map of a search, and the structures of LoR2C's edits.

    Args:
        trainer: Whose loggers still take something; other loggers take no pictures.
        paths: One adapter's paths.
        step: The last optimizer step.
    """
    takers = [taker for callback in trainer.callback_handler.callbacks if (taker := _taker(callback, step))]
    if not takers:
        return
    try:
        drawn = list(_pictures(paths))
    except ModuleNotFoundError as missing:
        logger.warning("no logger gets a picture of what was on: %s", missing)
        return
    for name, figure in drawn:
        for take in takers:
            take(f"{PREFIX}{name}", figure)


def _taker(callback: TrainerCallback, step: int) -> Callable[[str, Any], object] | None:
    """Return what takes a picture by its name, if the logger is one that takes some and has begun."""
    if isinstance(callback, TensorBoardCallback):
        writer: Any = callback.tb_writer
        return None if writer is None else lambda name, figure: writer.add_figure(name, figure, step)
    if isinstance(callback, WandbCallback):
        wandb: Any = callback._wandb
        if wandb is None or wandb.run is None:  # of other processes than the first
            return None
        return lambda name, figure: wandb.log({name: wandb.Image(_pixels(figure)), "train/global_step": step})
    if isinstance(callback, MLflowCallback):
        mlflow: Any = callback._ml_flow
        if not callback._initialized or mlflow.active_run() is None:
            return None
        return lambda name, figure: mlflow.log_figure(figure, f"{name}.png")
    return None


def _pixels(figure: Any) -> Any:
    """Return a figure as an image: of figures W&B takes those of pyplot only."""
    from PIL import Image  # comes with matplotlib

    held = io.BytesIO()
    figure.savefig(held, format="png")
    return Image.open(held)


def _pictures(paths: PathSet) -> Iterator[tuple[str, Any]]:
    suffix = "" if paths.adapter == "default" else f" of {paths.adapter}"
    if searches(paths.history):
        yield f"enabled paths{suffix}", plot_frequency(paths.history)
    if edits(paths.history):
        yield f"structure{suffix}", plot_structure(paths.history)
