"""What a search or its edits decided, as Trainer's loggers take it: numbers with the logs, pictures at the end."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from transformers import Trainer
from transformers.integrations.integration_utils import TensorBoardCallback

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
    """Give TensorBoard the heat map of a dynamic or static search, and the structures of LoR2C's edits.

    Args:
        trainer: Whose TensorBoard writer is still open; one without is left alone.
        paths: One adapter's paths.
        step: The last optimizer step.
    """
    for callback in trainer.callback_handler.callbacks:
        writer: Any = callback.tb_writer if isinstance(callback, TensorBoardCallback) else None
        if writer is None:
            continue
        try:
            drawn = list(_pictures(paths))
        except ModuleNotFoundError as missing:
            logger.warning("TensorBoard gets no picture of what was on: %s", missing)
            return
        for name, figure in drawn:
            writer.add_figure(f"{PREFIX}{name}", figure, step)


def _pictures(paths: PathSet) -> Iterator[tuple[str, Any]]:
    suffix = "" if paths.adapter == "default" else f" of {paths.adapter}"
    if searches(paths.history):
        yield f"enabled paths{suffix}", plot_frequency(paths.history)
    if edits(paths.history):
        yield f"structure{suffix}", plot_structure(paths.history)
