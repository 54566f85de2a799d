"""Everything that a pass over a model could touch, to be compared before and after."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import torch
from tests.models import Batch
from torch import Tensor, nn

from rankwise.paths.path_set import holders
from rankwise.scores.probe import model_loss


class Broken(RuntimeError):
    """The user's own error."""


def losses_of_a_user(fails_at: int | None = None) -> dict[str, Any]:
    """Return a loss and one of drawn labels that draw from every global generator, and fail in one of their calls."""
    calls = iter(range(100))

    def touching(model: nn.Module, batch: Batch) -> Tensor:
        torch.rand(3), random.random(), np.random.random()  # noqa: NPY002
        if next(calls) == fails_at:
            raise Broken
        return model_loss(model, batch)

    def drawing(model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, int]:
        if next(calls) == fails_at:
            raise Broken
        found = nn.functional.cross_entropy(model(**batch).logits, batch["labels"], reduction="none")
        return found, len(found)

    return {"compute_loss": touching, "draw_losses": drawing}


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
