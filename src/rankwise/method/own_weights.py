"""Whether a projection's weight is its own: what is merged into a shared one changes whatever else it is used for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

Use = tuple[int, str]  # a weight or a module, and the name of the module that has it


def check_own_weights(model: nn.Module, hosts: Mapping[str, BaseTunerLayer] | None = None) -> None:
    """Refuse to merge into a weight that is used elsewhere too, such as the embedding's in a tied output layer.

    Args:
        model: The base model, LoRA on it.
        hosts: What is to be merged: PEFT's layers by the names of their modules; all there are if left out.

    Raises:
        ValueError: Names the projection and who else uses its weight.
    """
    if hosts is None:
        hosts = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    used = defaultdict(set)
    for what, name in [*_weights(model), *_places(model)]:
        used[what].add(name)
    for name, host in hosts.items():
        base = host.get_base_layer()
        weight = base._parameters.get("weight")  # HQQ's has none
        others = used[id(base)] | (used[_key(weight)] if weight is not None else set()) - {name}
        if others:
            raise ValueError(
                f"LoRA on {name} can't be merged: its weight is {', '.join(sorted(others))}'s too, which would change. "
                "Keep the adapter as it is (save_pretrained), or give the projection a weight of its own before the "
                "adapter is put on (module.weight = torch.nn.Parameter(module.weight.clone()), and "
                "model.config.tie_word_embeddings = False)"
            )


def _weights(model: nn.Module) -> Iterator[Use]:
    """Yield each weight with the modules that hold it; one module in several places holds it once."""
    unused = set(_unused(model))
    for name, module in model.named_modules():
        for weight in module._parameters.values():
            if weight is not None and id(module) not in unused:
                yield _key(weight), _plain(name)


def _places(model: nn.Module) -> Iterator[Use]:
    """Yield the modules beside whose LoRA there is another way to them: PEFT wraps a module in one place only."""
    hosts = {id(module.get_base_layer()): module for module in model.modules() if isinstance(module, BaseTunerLayer)}
    for name, parent in model.named_modules():
        for child, module in parent._modules.items():
            host = hosts.get(id(module))
            if host is not None and host is not parent:
                yield id(module), _plain(f"{name}.{child}".lstrip("."))


def _unused(model: nn.Module) -> Iterator[int]:
    """Yield the modules in whose place an adapter's copy is at work."""
    wrappers: list[Any] = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    for wrapper in wrappers:
        if not wrapper.disable_adapters and any(name in wrapper.modules_to_save for name in wrapper.active_adapters):
            yield from map(id, wrapper.original_module.modules())


def _key(weight: nn.Parameter) -> int:
    """Return where a weight's numbers are; which tensor it is where there are none (meta) or several (quantised)."""
    return (weight.data_ptr() if type(weight) is nn.Parameter else 0) or id(weight)


def _plain(name: str) -> str:
    return name.replace(".base_layer", "").replace(".original_module", "") or "the model"
