"""The two autograd functions a path needs beside its own arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Record = Callable[[Tensor, Tensor], None]


class Tap(torch.autograd.Function):
    """Passes a path's destination through and shows ``x_src`` and ``g_dst`` to a recorder in the backward pass.

    ``x`` is kept by ``save_for_backward``, so gradient checkpointing recomputes it like anything else. ``anchor`` is a
    trainable tensor of no elements: it makes autograd visit the tap where nothing else below it requires a gradient.
    """

    @staticmethod
    def forward(ctx: Any, result: Tensor, x: Tensor, anchor: Tensor, record: Record) -> Tensor:
        """Return ``result`` (.., o) itself; ``x`` is (.., i)."""
        ctx.save_for_backward(x)
        ctx.record = record
        return result.detach()  # no view: what comes after may change it in place

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        """Record (x, g), each flattened to tokens x features, and pass ``g`` on."""
        (x,) = ctx.saved_tensors
        (g,) = grads
        with torch.no_grad():
            ctx.record(x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1]))
        return g, None, None, None


class Tie(torch.autograd.Function):
    """Passes an activation through and ties parameters into the graph without giving them a gradient.

    DistributedDataParallel waits for every parameter that requires a gradient; this lets its hooks fire for a path
    that is off, at no cost.
    """

    @staticmethod
    def forward(ctx: Any, result: Tensor, *parameters: Tensor) -> Tensor:
        """Return ``result`` itself."""
        ctx.count = len(parameters)
        return result.detach()  # no view: what comes after may change it in place

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        """Pass the gradient on; the parameters get none."""
        return (*grads, *(None,) * ctx.count)
