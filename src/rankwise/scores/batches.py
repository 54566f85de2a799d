"""Batches where the model is: what a training batch must be, and its tensors on the model's device."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_features", "input_values", "labels")


def to_device(batch: Any, model: nn.Module) -> dict[str, Any]:
    """Return the batch with its tensors, nested ones too, on the device of the model's first parameter.

    Raises:
        ValueError: The batch is no mapping, or a row of a dataset.
    """
    if not isinstance(batch, Mapping):
        raise ValueError(
            f"a training batch must be a mapping that the model takes as keyword arguments, got {type(batch).__name__}"
            "; for others pass compute_loss=lambda model, batch: ..."
        )
    lists = [name for name in INPUTS if _plain_numbers(batch.get(name))]
    ids = batch.get("input_ids")
    if lists or (isinstance(ids, Tensor) and ids.ndim < 2):
        what = f"{lists[0]} is a {type(batch[lists[0]]).__name__}" if lists else "input_ids have one dimension"
        raise ValueError(
            f"a training batch holds tensors of several examples, and its {what}, as of a row of a dataset: give "
            "batches, such as torch.utils.data.DataLoader(dataset, batch_size=16, collate_fn=...) makes"
        )
    return dict(beside(batch, model))


def _plain_numbers(value: Any) -> bool:
    """Tell whether a value is a number or a nest of lists of some; models of objects take lists of other things."""
    while isinstance(value, list) and value:
        value = value[0]
    return isinstance(value, (int, float))


def beside(batch: Any, model: nn.Module) -> Any:
    """Return whatever a batch is with its tensors, nested ones too, on the device of the model's first parameter.

    What holds them stays of its class, and the batch as it is.
    """
    return _moved(batch, next(model.parameters()).device)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, MutableMapping):
        held = copy.copy(value)
        held.update({key: _moved(each, device) for key, each in value.items()})
        return held
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_moved(each, device) for each in value))
    return type(value)(_moved(each, device) for each in value) if type(value) in (list, tuple) else value
