"""How transformers checkpoints a block, read off the block itself."""

from __future__ import annotations

from functools import partial

from torch import nn


def is_reentrant(block: nn.Module) -> bool:
    """Tell whether a block is checkpointed the reentrant way, whose first pass builds no graph."""
    function = block.__dict__.get("_gradient_checkpointing_func")
    return isinstance(function, partial) and bool(function.keywords.get("use_reentrant", True))
