"""Whether ``target_modules``, or LoR2C's ``inject_targets``, names what a model has and a path can run along."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from peft import LoraConfig
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _check_lora_target_modules_mamba,
    _maybe_include_all_linear_layers,
)
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn
from transformers.pytorch_utils import Conv1D

from rankwise.configs.path import PathConfig
from rankwise.errors import nearest
from rankwise.method.heads import TASKS as TASKS_WITH_A_HEAD
from rankwise.method.heads import head_of, within
from rankwise.paths.low_rank_path import LowRankPath

# PEFT's layers that ask a gate in their forward pass; the others would train a path that is off. By name: the
# quantised ones exist only where their library does.
GATED_LAYERS = ("PathLinear", "Linear8bitLt", "Linear4bit", "GPTQLoraLinear", "HqqLoraLinear", "TorchaoLoraLinear")
UNGATED_MERGE = ("GPTQLoraLinear", "TorchaoLoraLinear")
NOT_LINEAR = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)


def module_names(model: nn.Module) -> list[str]:
    """Return the full names of a model's modules, as they were before PEFT wrapped some."""
    return list(dict.fromkeys(name for name, _ in _modules(model)))


def linear_names(model: nn.Module) -> set[str]:
    """Return the last names of a model's linear layers, as they were before PEFT wrapped some."""
    linear = (nn.Linear, Conv1D, Linear)
    return {name.rpartition(".")[2] for name, module in _modules(model) if isinstance(module, linear)}


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules by their names without what PEFT adds to them; a wrapper and what it wraps have one name."""
    for name, module in model.named_modules():
        if name and ".lora_" not in name and ".modules_to_save" not in name:
            yield name.replace(".base_layer", "").replace(".original_module", ""), module


def unmatched(targets: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the targets that neither are a module's full name nor its end, in name order."""
    ends = {end for name in names for end in _ends(name)}
    return sorted(target for target in targets if target not in ends)


def _ends(name: str) -> Iterator[str]:
    yield name
    while "." in name:
        name = name.partition(".")[2]
        yield name


def means_all(config: PathConfig) -> bool:
    """Tell whether a config's targets are all projections but the head, which PEFT would not make of them."""
    if config.target_modules is None:
        return config.undecided  # PEFT's default for a family, a few projections, is no space to choose ranks in
    # PEFT would put LoRA on some heads, and then not save it.
    return config.target_modules == "all-linear" and config.task_type in TASKS_WITH_A_HEAD


def all_of(model: nn.Module, config: PathConfig) -> list[str]:
    """Return targets that are all projections but the head, in the blocks that a config asks for."""
    names = all_linear(model)
    if config.layers_to_transform is None:
        return names
    # PEFT looks at a module's block where a target is the end of its name; a full name it takes wherever that is.
    return sorted({name.rpartition(".")[2] for name in names})


def check_targets(model: nn.Module, config: PathConfig) -> None:
    """Refuse a target that names no module, naming the nearest projections that exist."""
    targets = config.target_modules
    if targets is None or targets == "all-linear":
        return
    field = "inject_targets" if config.linear_waits else "target_modules"
    names, linear = module_names(model), linear_names(model)
    there = f"; its linear layers are {', '.join(sorted(linear))}"
    if isinstance(targets, str) and not any(_expression(field, targets).fullmatch(name) for name in names):
        raise NoMatchingPeftModuleError(
            f"{field}={targets!r} is a regular expression that matches no module of {type(model).__name__}"
            f"{_meant(targets, linear)}{there}"
        )
    for target in [] if isinstance(targets, str) else unmatched(targets, names):
        raise NoMatchingPeftModuleError(
            f"{field} names {target!r}, which matches no module of {type(model).__name__}{nearest(target, linear)}"
            f"{there}"
        )
    if not targets and not config.block_paths().kinds:
        raise ValueError(
            "target_modules=[] without shortcuts leaves nothing to search: name linear layers, such as "
            "['q_proj', 'v_proj'], or shortcuts, such as ['res1', 'res2', 'in', 'cut']"
        )


def _meant(targets: str, linear: set[str]) -> str:
    """Return what a string may have been meant as: a name belongs into a list."""
    return f"; did you mean [{targets!r}], a list of names" if targets in linear else nearest(targets, linear)


def _expression(field: str, targets: str) -> re.Pattern[str]:
    try:
        return re.compile(targets)
    except re.error as error:
        raise ValueError(
            f"{field}={targets!r} is a string, so a regular expression of full names, and not a valid one ({error}): "
            "write .* for any characters, or give names in a list, such as ['q_proj', 'v_proj']"
        ) from error


def check_layers(model: nn.Module, config: PathConfig, targeted: Callable[[PathConfig, str], object]) -> None:
    """Refuse blocks in ``layers_to_transform`` in which nothing is targeted; PEFT passes over them.

    Args:
        model: The base model.
        config: The config.
        targeted: Tells whether a config targets the module of a name.
    """
    chosen = config.layers_to_transform
    if chosen is None or not config.target_modules:
        return
    view = copy.copy(config)
    for block in [chosen] if isinstance(chosen, int) else chosen:
        view.layers_to_transform = [block]
        if not any(targeted(view, name) for name, _ in model.named_modules()):
            raise NoMatchingPeftModuleError(
                f"layers_to_transform={chosen!r} names block {block}, in which {type(model).__name__} has none of the "
                f"targets {view.target_modules!r}; blocks count from 0"
            )


def check_linear(model: nn.Module, targeted: Callable[[str], object]) -> None:
    """Refuse targets that are no linear map, before anything is built.

    Args:
        model: The base model.
        targeted: Tells whether a module of that name is a target.
    """
    for name, module in model.named_modules():
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if isinstance(base, NOT_LINEAR) and targeted(name):
            raise ValueError(
                f"target_modules matches {name!r}, a {type(base).__name__}; a path runs along a linear "
                "projection: target linear layers only"
            )
        refusal = refused_by_peft(model, name)
        if refusal and targeted(name):
            raise ValueError(refusal)


def refused_by_peft(model: nn.Module, name: str) -> str:
    """Return why PEFT puts no LoRA on a projection, "" where it does: Mamba's kernels read some weights directly."""
    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, name.rpartition(".")[2])
    except ValueError as error:
        return str(error)
    return ""


def check_gated(hosts: Mapping[str, object]) -> None:
    """Refuse layers of PEFT whose forward pass does not ask a gate."""
    for name, host in hosts.items():
        if type(host).__name__ == "Linear":  # PEFT's own; a plain projection that had none gets ours
            raise ValueError(
                f"target {name!r} has LoRA of PEFT's own already: take it off first (base = model.unload(), or "
                "model.merge_and_unload())"
            )
        if type(host).__name__ not in GATED_LAYERS:
            raise ValueError(
                f"target {name!r} became PEFT's {type(host).__name__}, whose LoRA can't be switched; load the base "
                "unquantised or with bitsandbytes, GPTQ, HQQ or torchao"
            )


def check_gated_merge(paths: Iterable[LowRankPath]) -> None:
    """Refuse to merge where PEFT's layer would merge a path that is off."""
    for path in paths:
        if type(path.host).__name__ in UNGATED_MERGE and not path.contributing:
            raise ValueError(
                f"{path.name} is off, and PEFT's {type(path.host).__name__} would merge it all the same: "
                "export the adapter with rankwise.export_lora, load that on the base, and merge it there"
            )


def all_linear(model: nn.Module) -> list[str]:
    """Return the projections that PEFT's ``"all-linear"`` means, without a head and what PEFT refuses.

    A head is one under a usual name: see ``rankwise.method.heads``.
    """
    config = LoraConfig(target_modules="all-linear")
    _maybe_include_all_linear_layers(config, model)
    heads = head_of(model)
    names: Any = config.target_modules
    return sorted(name for name in names if not within(name, heads) and not refused_by_peft(model, name))
