"""Everything that a pass over a model could touch, to be compared before and after."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import torch
from torch import nn

from rankwise.paths.path_set import holders


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return values, gradients, flags, structure, hooks, what is on, what is under way, and all global generators."""
    sets = [paths for holder in holders(model).values() for paths in holder.rankwise_paths.values()]
    return {
        "state": copy.deepcopy(dict(model.state_dict())),
        "buffers": {name: (buffer.clone(), buffer.dtype) for name, buffer in model.named_buffers()},
        "modules": [(name, type(module).__name__) for name, module in model.named_modules()],
        "grads": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "flags": {name: (p.requires_grad, p.dtype) for name, p in model.named_parameters()},
        "identities": [id(parameter) for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "attributes": [sorted(module.__dict__) for module in model.modules()],
        "hooks": [
            [len(hooks) for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)]
            for module in model.modules()
        ],
        "allocation": [(path.name, path.enabled, path.contributing) for paths in sets for path in paths.resident],
        "search": [(paths.session.recorder, paths.session.probing, paths.session.listener) for paths in sets],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(legacy=False)["state"]["key"],  # noqa: NPY002
        "python": random.getstate(),
    }


def assert_same(before: Any, after: Any) -> None:
    """Compare two snapshots, or two nests of containers and tensors, to the bit."""
    if isinstance(before, dict):
        assert before.keys() == after.keys()
        for key in before:
            assert_same(before[key], after[key])
    elif isinstance(before, list | tuple):
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert_same(one, other)
    elif isinstance(before, torch.Tensor):
        assert torch.equal(before, after)
    elif isinstance(before, np.ndarray):
        assert (before == after).all()
    else:
        assert before == after
