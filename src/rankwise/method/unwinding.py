"""A refusal leaves nothing behind: what was built until then is taken off again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from rankwise.paths.path_set import holders


@contextmanager
def unwound(model: nn.Module, *, always: bool = True) -> Iterator[None]:
    """Put the structure of a model back if something inside raises: modules, hooks, attributes, what trains.

    PEFT injects layer by layer, so an error in between would leave layers that no later call knows what to do with.
    Values of tensors are not looked at.

    Args:
        model: The model.
        always: Put back what other methods built, too.
    """
    noted: list[tuple[Any, Any]] = []
    for module in model.modules():
        own = module.__dict__
        noted.append((own, dict(own)))
        noted += [(value, _copy(value)) for value in own.values() if isinstance(value, (dict, list, set))]
    # Hooks find block paths through these, and they are no modules' attributes.
    noted += [(hosts, dict(hosts)) for holder in holders(model).values() for hosts in _hosts(holder)]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        if always or holders(model):
            for container, content in noted:
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(content)
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
        raise


def _copy(container: Any) -> Any:
    return dict(container) if isinstance(container, dict) else type(container)(container)


def _hosts(holder: Any) -> list[dict[Any, Any]]:
    """Return the containers in which the hooks of block paths look for their modules."""
    wiring = holder.rankwise_paths.wiring
    return [wiring.layer_hosts, *(taps.hosts for taps in wiring.taps)] if wiring is not None else []
