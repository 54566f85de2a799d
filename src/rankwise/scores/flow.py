"""What synflow runs a model in: absolute weights in float64, and ones in the place of what tokens are embedded as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from rankwise.paths.low_rank_path import dequantised_weight


def token_embeddings(model: Any) -> nn.Embedding:
    """Return the embeddings of the tokens that a model runs on.

    Raises:
        ValueError: It has none, or runs on something else.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    try:
        # Whisper has some for its decoder and runs on sounds.
        runs_on_tokens = isinstance(base, PreTrainedModel) and base.main_input_name == "input_ids"
        found = base.get_input_embeddings() if runs_on_tokens else None
    except NotImplementedError:
        found = None
    if not isinstance(found, nn.Embedding):
        raise ValueError(
            f"synflow_loss='logits' pushes ones through the model in the place of token embeddings, and "
            f"{type(base).__name__} has no token embeddings to run on: use synflow_loss='loss', or another proxy"
        )
    return found


def widened(batch: Any) -> Any:
    """Return a batch with its floating tensors, nested ones too, in float64, as the model's weights are."""
    if isinstance(batch, Mapping):
        return {key: widened(value) for key, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(map(widened, batch))
    return batch.double() if isinstance(batch, Tensor) and batch.is_floating_point() else batch


@contextmanager
def plain_experts(model: nn.Module) -> Iterator[None]:
    """Run experts one by one: the fast kernel that transformers takes by default has no float64."""
    config: Any = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig):
        yield
        return
    before = config._experts_implementation
    config._experts_implementation = "eager"
    try:
        yield
    finally:
        config._experts_implementation = before


@contextmanager
def absolute_float64(model: nn.Module) -> Iterator[None]:
    """Replace every floating parameter by its absolute value in float64, and floating buffers by float64.

    A quantised linear layer computes with its dequantised absolute weight, one layer at a time.
    """
    quantised = [m for m in model.modules() if isinstance(m, nn.Linear) and not m.weight.is_floating_point()]
    forwards = [module.__dict__.get("forward") for module in quantised]
    parameters = [(p, p.data, p.grad) for p in model.parameters() if p.is_floating_point()]
    buffers = [(b, b.data) for b in model.buffers() if b.is_floating_point()]
    try:
        for parameter, data, _ in parameters:
            parameter.grad = None
            parameter.data = data.abs().double()
        for buffer, data in buffers:
            buffer.data = data.double()
        for module in quantised:
            module.forward = partial(_absolute_linear, module)  # type: ignore[method-assign]
        yield
    finally:
        for module, forward in zip(quantised, forwards, strict=True):
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.__dict__["forward"] = forward
        for parameter, data, grad in parameters:
            parameter.data = data
            parameter.grad = grad
        for buffer, data in buffers:
            buffer.data = data


def _absolute_linear(module: nn.Linear, x: Tensor) -> Tensor:
    weight = dequantised_weight(module).abs().to(x.dtype)
    return F.linear(x, weight, module.bias)
