"""What the tests of shortcuts share: five families that differ in where their blocks keep the residual stream."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from tests.families import FAMILIES
from tests.models import Batch, adapted, class_batches, fill_, keep_only_, logits, text_batches
from torch import Tensor, nn

import rankwise
from rankwise.paths.path_set import path_sets

FIVE = ("bert", "opt-post", "opt-pre", "llama", "gemma2")
POST = ("bert", "opt-post")
CAUSAL = tuple(name for name in FIVE if FAMILIES[name].causal)


def kinds(name: str) -> list[str]:
    """Return every kind that a family may have together; ``layer`` stands in for ``in`` on one of them."""
    if FAMILIES[name].post_norm:
        return ["res1", "res2", "in", "cut", "layer"]
    return ["res1", "res2", "layer" if name == "gemma2" else "in", "cut"]


def made(name: str, base: Any = None, *, filled: bool = True, **fields: Any) -> Any:
    """Adapt a family's tiny model with q, v and every kind; ``filled`` gives every path's B values."""
    family = FAMILIES[name]
    options: dict[str, Any] = {
        "task_type": "CAUSAL_LM" if family.causal else "SEQ_CLS",
        "target_modules": list(family.targets),
        "shortcuts": kinds(name),
        **fields,
    }
    model = adapted(family() if base is None else base, **options)
    if filled:
        fill_(model)
    return model


def batches(name: str, count: int = 1) -> list[Batch]:
    """Return training batches for a family."""
    return text_batches(count) if FAMILIES[name].causal else class_batches(count)


def names(model: nn.Module, kind: str | None = None, adapter: str | None = None) -> list[str]:
    """Return the names of an adapter's paths, of one kind where one is given."""
    paths = rankwise.named_paths(model, adapter)
    return [name for name, path in paths.items() if kind is None or path.kind == kind]


def base_logits(name: str, ids: Tensor | None = None) -> Tensor:
    return logits(FAMILIES[name](), ids)


def second(model: Any, adapter: str = "second", **fields: Any) -> None:
    """Put an adapter of other kinds and another rank beside the first."""
    options = {"shortcuts": ["res2", "cut"], "shortcut_r": 3, "target_modules": [], **fields}
    model.add_adapter(adapter, rankwise.HeteroLoraConfig(r=2, mode="off", **options))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for path in rankwise.named_paths(model, adapter).values():
            path.lora_B.copy_(torch.randn(path.lora_B.shape, generator=generator))


def on(model: nn.Module, adapter: str | None = None) -> list[str]:
    return [name for name, path in rankwise.named_paths(model, adapter).items() if path.enabled]


def half_on_(model: nn.Module) -> None:
    keep_only_(model, *names(model)[::2])


def linear_only_(model: nn.Module) -> None:
    keep_only_(model, *names(model, "linear"))


def checkpointed(model: Any, *, reentrant: bool = False) -> Any:
    """Switch checkpointing on as Trainer does: after the paths are built."""
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": reentrant})
    return model.train()


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    """Take the gradients out of the model, by path and factor."""
    found: dict[str, Tensor | None] = {}
    for name, path in rankwise.named_paths(model).items():
        for factor, parameter in (("A", path.lora_A), ("B", path.lora_B)):
            found[f"{name}.{factor}"], parameter.grad = parameter.grad, None
    return found


def assert_same_gradients(
    actual: Mapping[str, Tensor | None], wanted: Mapping[str, Tensor | None], tolerance: float = 1e-5
) -> None:
    assert actual.keys() == wanted.keys()
    assert any(gradient is not None and bool(gradient.any()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        found = actual[name]
        assert (found is None) == (gradient is None), name
        if found is not None and gradient is not None:
            assert torch.allclose(found, gradient, rtol=tolerance, atol=tolerance), name


def held(model: nn.Module, *besides: Tensor) -> list[str]:
    """Return where a tensor with a graph, or an activation, hangs on a module, a hook's owner or in a container."""
    allowed = {id(tensor) for tensor in (*model.parameters(), *model.buffers(), *besides)}
    wiring: Any = path_sets(model).wiring  # type: ignore[attr-defined]
    owners: list[tuple[str, Any]] = [*model.named_modules(), *((f"taps {t.index}", t.flow) for t in wiring.taps)]
    owners.append(("wiring", wiring))
    return [
        f"{name}.{attribute}"
        for name, owner in owners
        for attribute, value in owner.__dict__.items()
        for tensor in _tensors(value)
        if id(tensor) not in allowed
    ]


def _tensors(value: Any) -> Collection[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for tensor in value.values() if isinstance(tensor, Tensor)]
    if isinstance(value, (list, tuple)):
        return [tensor for tensor in value if isinstance(tensor, Tensor)]
    return []


def own_hooks(model: nn.Module) -> list[str]:
    """Return the modules that carry a hook of this library."""
    return [
        name
        for name, module in model.named_modules()
        for hook in [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if type(getattr(hook, "__self__", hook)).__module__.startswith("rankwise")
        or getattr(hook, "__module__", "").startswith("rankwise")
    ]
