"""Ranks that no projection can use: told, and refused before memory is taken where they can only be a slip."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

logger = logging.getLogger("rankwise")
FIELDS = ("r", "init_r", "target_r", "shortcut_r", "inject_r", "bottleneck")
BY_NAME = ("rank_pattern", "shortcut_ranks")
MOST = 8  # times the largest rank that a matrix of the model can have
ALWAYS = 1024  # a rank that is no slip in any model, however small


def check_ranks(model: nn.Module, config: Any) -> None:
    """Warn of a rank above that of every matrix, refuse one that is far above it.

    A matrix from i to o features has rank ``min(i, o)`` at most, so a path of a higher one has parameters to no end,
    which PEFT allows.

    Args:
        model: The base model.
        config: Of any method; its ranks are looked at, and what it computed of them.

    Raises:
        ValueError: A rank is more than 8 times the largest that a linear layer of the model can have, and above 1,024.
    """
    largest = largest_rank(model)
    for name, rank in _ranks(config):
        if largest and rank > largest:
            if rank > max(MOST * largest, ALWAYS):
                raise ValueError(
                    f"{name}={rank}{_source(config)} is above {MOST} times {largest}, the largest rank that a linear "
                    f"layer of {type(model).__name__} can have (the smaller of its two sizes): it would only take "
                    f"memory; lower it, {largest} is as much as any layer can use"
                )
            logger.warning(
                "%s=%d is above %d, the largest rank that a linear layer of %s can have: what is above it has "
                "parameters to no end",
                *(name, rank, largest, type(model).__name__),
            )


def largest_rank(model: nn.Module) -> int:
    """Return the largest rank that a linear layer of the model can have, 0 where it has none."""
    linear = (module for module in model.modules() if isinstance(module, (nn.Linear, Conv1D)))
    return max((min(_size(module)) for module in linear), default=0)


def _ranks(config: Any) -> Iterator[tuple[str, int]]:
    for field in FIELDS:
        rank = getattr(config, field, None)
        if isinstance(rank, int):
            yield field, rank
    for field in BY_NAME:
        for key, rank in (getattr(config, field, None) or {}).items():
            if isinstance(rank, int):  # AdaLoRA's has lists of what it pruned
                yield f"{field}[{key!r}]", rank


def _source(config: Any) -> str:
    budget = getattr(config, "rank_budget", None)
    return f" (of rank_budget={budget})" if budget is not None else ""


def _size(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight: Any = module.weight  # of transformers' Conv1D
    return weight.shape[0], weight.shape[1]
