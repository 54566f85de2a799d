"""How a block is checkpointed: by transformers, read off the block; by a wrapper around it, seen as it runs again."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn


def is_reentrant(block: nn.Module) -> bool:
    """Tell whether a block is checkpointed the reentrant way, whose first pass builds no graph."""
    function = block.__dict__.get("_gradient_checkpointing_func")
    return isinstance(function, partial) and bool(function.keywords.get("use_reentrant", True))


def refuse_again(index: int, path: str) -> None:
    """Refuse to run a block whole in the backward pass, where what a path brings from another block is gone.

    Transformers' checkpointing runs again what is inside a block, with what the block was called with; a wrapper around
    the block, such as torch's ``checkpoint_wrapper``, calls the block itself.

    Args:
        index: Number of the block.
        path: The kind or name of the path.

    Raises:
        ValueError: A backward pass is under way.
    """
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() >= 0:
        raise ValueError(
            f"block {index} is called again in the backward pass, by a checkpoint around it (torch's "
            f"checkpoint_wrapper, FSDP's activation_checkpointing), and what path {path!r} brings from another block "
            "is not there then: checkpoint by transformers (gradient_checkpointing=True with "
            '{"use_reentrant": False}), or leave such paths out'
        )
