"""A classification head trained alone for a few steps, so that what lies below it has a direction worth looking at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from rankwise.distributed import sum_over_processes_, world_size
from rankwise.errors import remedy
from rankwise.method.heads import HEADS, WRAPPED, head_of, trained_by_peft, within
from rankwise.passes import passed
from rankwise.paths.path_set import has_adapter
from rankwise.scores.probe import untouched

MOST_STEPS = 100
RATE, BETAS, EPSILON = 5e-3, (0.9, 0.999), 1e-8  # Adam's, on the head alone


def head_parameters_of(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a model's classification head.

    Beside an adapter they are those of the copy that trains, where PEFT made one; and of a head that PEFT makes none of
    by itself what was told to train.
    """
    adapted, found = has_adapter(model), []
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    heads, known = head_of(base), trained_by_peft(base)
    usual = [name for name in heads if name.endswith(known)]
    for full, parameter in model.named_parameters():
        name = full.removeprefix(WRAPPED)
        trains = within(name, usual) or (within(name, heads) and (parameter.requires_grad or not adapted))
        if trains and "original_module" not in name.split(".") and parameter.is_floating_point():
            found.append(parameter)
    return found


def head_steps(model: nn.Module, batches: Sequence[Any], steps: int | None) -> int:
    """Return for how many steps the head is trained.

    Args:
        model: A base model.
        batches: What there is to train on.
        steps: What the user asked for; twice the number of batches, at most 100, where None and there is a head.

    Raises:
        ValueError: The number is no whole number of at least 0, or there is no head to train.
    """
    head = head_parameters_of(model)
    if steps is None:
        return min(2 * len(batches), MOST_STEPS) if head else 0
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"head_warmup={steps!r} must be a whole number of steps, or None")
    if steps and not head:
        raise ValueError(
            f"head_warmup={steps} trains a head, and {type(model).__name__} has none under a usual name "
            f"({', '.join(HEADS)}): train yours before planning, and leave head_warmup out"
        )
    return steps


@contextmanager
def warmed_head(
    model: nn.Module,
    batches: Sequence[Any],
    loss_of: Callable[[nn.Module, Any], Tensor],
    steps: int,
    *,
    keep: bool,
) -> Iterator[None]:
    """Train the head alone inside; put it back afterwards unless it is kept, and in any case where something fails.

    Args:
        model: A base model.
        batches: Taken in turn, again and again.
        loss_of: Called with (model, batch): the loss.
        steps: How many steps of Adam.
        keep: Whether the head stays as trained.
    """
    parameters = head_parameters_of(model)
    before = [parameter.detach().clone() for parameter in parameters] if steps else []
    done = False
    try:
        if steps:
            _train(model, parameters, batches, loss_of, steps)
        yield
        done = True
    finally:
        if not (done and keep):
            with torch.no_grad():
                for parameter, value in zip(parameters, before, strict=False):  # nothing where nothing was trained
                    parameter.copy_(value)


def _train(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    batches: Sequence[Any],
    loss_of: Callable[[nn.Module, Any], Tensor],
    steps: int,
) -> None:
    """Run Adam on the head; no ``.grad`` is touched and no optimizer's hook is woken."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    wide = [torch.promote_types(p.dtype, torch.float32) for p in parameters]  # float16 has no room for Adam's epsilon
    values = [parameter.detach().to(dtype) for parameter, dtype in zip(parameters, wide, strict=True)]
    moments = [(torch.zeros_like(value), torch.zeros_like(value)) for value in values]
    try:
        for parameter, _ in flags:
            parameter.requires_grad = False
        for parameter in parameters:
            parameter.requires_grad = True
        with untouched(model), torch.enable_grad():
            model.eval()
            for step in range(1, steps + 1):
                loss = loss_of(model, batches[(step - 1) % len(batches)])
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
                if all(gradient is None for gradient in found):
                    raise ValueError(
                        "the loss does not use the head, which head_warmup would train first: set "
                        f"{remedy(head_warmup=0)}"
                    )
                gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
                sum_over_processes_(gradients)
                for parameter, gradient, value, moment in zip(parameters, gradients, values, moments, strict=True):
                    _adam_(value, gradient.to(value.dtype) / world_size(), *moment, step)
                    parameter.data.copy_(value)
                passed()
    finally:
        for parameter, flag in flags:
            parameter.requires_grad = flag


@torch.no_grad()
def _adam_(value: Tensor, gradient: Tensor, first: Tensor, second: Tensor, step: int) -> None:
    first.lerp_(gradient, 1 - BETAS[0])
    second.lerp_(gradient.square(), 1 - BETAS[1])
    scale = (second / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON)
    value.sub_(RATE * (first / (1 - BETAS[0] ** step)) / scale)
