"""One autograd function for what a path adds, where plain matrices are all there is.

PEFT's formula ``result + B(A(dropout(x))) * s`` is six nodes of autograd and, at ranks of one or two, all memory
traffic: the destination is read and written three times each way, and the skinny products run along the slow side of
their operands. Here every tensor of n tokens is gone through once a product, and ``h = A x^T`` (r x n) lies so that
all products have a long contiguous row. The sums are the same, in another order: equal in exact arithmetic.

Letters: ``n`` tokens, ``i`` and ``o`` input and output size, ``r`` rank; ``x`` (n x i), ``A`` (r x i), ``B`` (o x r),
``W`` (o x i) a frozen weight, ``g`` (n x o) the gradient at the destination.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Switch:
    on = True


@contextmanager
def plain_paths() -> Iterator[None]:
    """Compute every path by PEFT's general formula inside, as where this file does not apply.

    For comparisons, and for what can't go through an autograd function written in Python. With gradient checkpointing
    the backward pass, which runs the forward pass again, belongs inside.
    """
    before, _Switch.on = _Switch.on, False
    try:
        yield
    finally:
        _Switch.on = before


def flat(x: Tensor) -> Tensor:
    """Return tokens x features."""
    return x.reshape(-1, x.shape[-1])


class LowRankSum(torch.autograd.Function):
    """``y = base + s x A^T B^T``, where ``base`` is a tensor that is there already, or ``x W^T + bias``.

    With ``h = A x^T`` and ``k = s B^T g^T`` (both r x n) the gradients are ``gA = k x``, ``gB = s (h g)^T``, and
    ``gx = k^T A``, to which a base that reads ``x`` adds ``g W``. Kept for the backward pass are ``h`` and ``x``, which
    somebody else mostly keeps already; neither where both factors are frozen.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        scaling: float,
        dtype: torch.dtype,
        base: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        """Return ``y`` (.., o), computed in ``dtype``; either ``base`` (.., o) or ``weight`` is given."""
        tokens, down, up = flat(x.to(dtype)), a.to(dtype), b.to(dtype)
        h = down @ tokens.T
        if weight is None:
            assert base is not None
            y = torch.addmm(flat(base), h.T, up.T, alpha=scaling)
        else:
            y = F.linear(tokens, weight.to(dtype), bias if bias is None else bias.to(dtype))
            y.addmm_(h.T, up.T, alpha=scaling)
        ctx.scaling, ctx.dtype, ctx.shape = scaling, dtype, (x.shape, x.dtype)
        kept = (x, h) if any(ctx.needs_input_grad[1:3]) else (None, None)  # a frozen path's gradient needs neither
        ctx.save_for_backward(*kept, a, b, weight)
        return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], y.shape[-1]))  # no view: it may be changed in place

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``x``, ``A``, ``B`` and ``base``."""
        with torch.autocast(grads[0].device.type, enabled=False):  # all precisions are said here
            return LowRankSum._gradients(ctx, grads[0])

    @staticmethod
    def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, h, a, b, weight = ctx.saved_tensors
        wants_x, wants_a, wants_b = ctx.needs_input_grad[:3]
        g, down = flat(gradient).to(ctx.dtype), a.to(ctx.dtype)
        k = (b.to(ctx.dtype).T * ctx.scaling).contiguous() @ g.T
        gx = ga = gb = None
        if wants_x:
            shape, dtype = ctx.shape
            gx = k.T @ down if weight is None else (g @ weight.to(ctx.dtype)).addmm_(k.T, down)
            gx = gx.view(shape).to(dtype)
        if wants_a:
            ga = (k @ flat(x.to(ctx.dtype))).to(a.dtype)
        if wants_b:
            if torch.is_grad_enabled():  # a gradient of the gradient is wanted: it goes through h
                h = down @ flat(x.to(ctx.dtype)).T
            gb = ((h @ g) * ctx.scaling).T.to(b.dtype)
        return gx, ga, gb, None, None, gradient if ctx.needs_input_grad[5] else None, None, None


def common_dtype(x: Tensor, *others: Tensor | None) -> torch.dtype | None:
    """Return the precision that a sum of products of these tensors is computed in; None where it has several.

    Under autocast that is autocast's for what enters a product; ``x`` may have any it casts.
    """
    tensors = [tensor for tensor in (x, *others) if tensor is not None]
    if x.is_meta or any(type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors):  # quantised, sharded, traced
        return None
    dtypes = {tensor.dtype for tensor in tensors}
    if torch.is_autocast_enabled(x.device.type):
        cast = torch.get_autocast_dtype(x.device.type)
        return cast if dtypes <= {torch.float32, torch.float16, torch.bfloat16} else None
    return x.dtype if len(dtypes) == 1 and x.is_floating_point() else None


def fuses(host: nn.Module, *layers: nn.Module) -> bool:
    """Tell whether what ``nn.Linear`` layers of a host compute may be computed without calling them.

    Only while it trains: in evaluation mode the formula is PEFT's, so that an exported adapter that plain PEFT loads
    has the same logits to the last bit.
    """
    if (
        not _Switch.on
        or not host.training
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or _transformed()
    ):
        return False
    return all(_bare(layer) for layer in layers)


def _bare(layer: nn.Module) -> bool:
    """Tell whether a layer is ``nn.Linear`` and nobody listens to it or has put another forward in its place."""
    heard = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    heard = heard or nn.modules.module._has_any_global_hook()
    return type(layer) is nn.Linear and not heard and "forward" not in layer.__dict__


def _transformed() -> bool:
    forward_mode = torch.autograd.forward_ad._current_level >= 0
    return forward_mode or bool(torch._C._are_functorch_transforms_active())  # torch.func's vmap, grad, jvp
