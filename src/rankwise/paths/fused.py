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

_CASTABLE = (torch.float32, torch.float16, torch.bfloat16)  # what autocast casts


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


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in a precision; a ``to`` that changes nothing takes five times as long."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


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
        source, down, up = cast(x, dtype), cast(a, dtype), cast(b, dtype)
        h = torch.mm(down, flat(source).t())
        if weight is None:
            assert base is not None
            y = base.new_empty(base.shape)
            torch.addmm(flat(base), h.t(), up.t(), alpha=scaling, out=y.view(-1, y.shape[-1]))
        else:
            y = F.linear(source, cast(weight, dtype), bias if bias is None else cast(bias, dtype))
            y.view(-1, y.shape[-1]).addmm_(h.t(), up.t(), alpha=scaling)
        ctx.scaling, ctx.dtype, ctx.shape = scaling, dtype, (x.shape, x.dtype)
        _, wants_a, wants_b, *_ = ctx.needs_input_grad
        kept = (x, h) if wants_a or wants_b else (None, None)  # a frozen path's gradient needs neither
        ctx.save_for_backward(*kept, a, b, weight)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``x``, ``A``, ``B`` and ``base``."""
        (gradient,) = grads
        if not torch.is_autocast_enabled(gradient.device.type):
            return LowRankSum._gradients(ctx, gradient)
        with torch.autocast(gradient.device.type, enabled=False):  # all precisions are said here
            return LowRankSum._gradients(ctx, gradient)

    @staticmethod
    def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, h, a, b, weight = ctx.saved_tensors
        wants_x, wants_a, wants_b, _, _, wants_base, *_ = ctx.needs_input_grad
        dtype = ctx.dtype
        g, down = cast(flat(gradient), dtype), cast(a, dtype)
        k = torch.mm((cast(b, dtype).t() * ctx.scaling).contiguous(), g.t())
        gx = ga = gb = None
        if wants_x:
            shape, own = ctx.shape
            gx = torch.mm(k.t(), down) if weight is None else torch.mm(g, cast(weight, dtype)).addmm_(k.t(), down)
            gx = cast(gx.view(shape), own)
        if wants_a:
            ga = cast(torch.mm(k, flat(cast(x, dtype))), a.dtype)
        if wants_b:
            if torch.is_grad_enabled():  # a gradient of the gradient is wanted: it goes through h
                h = torch.mm(down, flat(cast(x, dtype)).t())
            gb = cast((torch.mm(h, g) * ctx.scaling).t(), b.dtype)
        return gx, ga, gb, None, None, gradient if wants_base else None, None, None


def common_dtype(x: Tensor, *others: Tensor | None) -> torch.dtype | None:
    """Return the precision that a sum of products of these tensors is computed in; None where it has several.

    Under autocast that is autocast's for what enters a product; ``x`` may have any it casts.
    """
    if x.is_meta:
        return None
    device, first, same, castable = x.device.type, x.dtype, True, True
    for tensor in (x, *others):
        if tensor is None:
            continue
        if type(tensor) is not Tensor and type(tensor) is not nn.Parameter:  # quantised, sharded, traced
            return None
        dtype = tensor.dtype
        same, castable = same and dtype is first, castable and dtype in _CASTABLE
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device) if castable else None
    return first if same and first.is_floating_point else None


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
        or nn.modules.module._has_any_global_hook()
        or transformed()
    ):
        return False
    return all(map(_bare, layers))


def _bare(layer: nn.Module) -> bool:
    """Tell whether a layer is ``nn.Linear`` and nobody listens to it or has put another forward in its place."""
    if type(layer) is not nn.Linear:
        return False
    own = layer.__dict__  # asked for all the time; a module's own attribute lookup takes five times as long
    heard = own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
    return not heard and "forward" not in own


def transformed() -> bool:
    """Tell whether torch.func or forward-mode differentiation is at work, in which tensors may have no values."""
    forward_mode = torch.autograd.forward_ad._current_level >= 0
    return forward_mode or bool(torch._C._are_functorch_transforms_active())  # vmap, grad, jvp
