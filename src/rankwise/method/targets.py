"""Whether ``target_modules``, or LoR2C's ``inject_targets``, names what a model has."""

from __future__ import annotations

import re

from peft.tuners.lora import Linear
from torch import nn

from rankwise.configs.path import PathConfig
from rankwise.errors import nearest


def check_targets(model: nn.Module, config: PathConfig) -> None:
    """Refuse a target that names no module, naming the nearest projections that exist."""
    targets = config.target_modules
    if targets is None or targets == "all-linear":
        return
    field = "inject_targets" if config.linear_waits else "target_modules"
    names = [name.replace(".base_layer", "") for name, module in model.named_modules() if name]
    linear = {
        name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, (nn.Linear, Linear))
    }
    if isinstance(targets, str) and not any(re.fullmatch(targets, name) for name in names):
        raise ValueError(
            f"{field}={targets!r} is a regular expression that matches no module of {type(model).__name__}"
            f"{nearest(targets, linear)}; its linear layers are {', '.join(sorted(linear - {'base_layer'}))}"
        )
    for target in [] if isinstance(targets, str) else sorted(targets):
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ValueError(
                f"{field} names {target!r}, which matches no module of {type(model).__name__}"
                f"{nearest(target, linear)}; its linear layers are {', '.join(sorted(linear - {'base_layer'}))}"
            )
    if not targets and not config.block_paths().kinds:
        raise ValueError(
            "target_modules=[] without shortcuts leaves nothing to search: name linear layers, such as "
            "['q_proj', 'v_proj'], or shortcuts, such as ['res1', 'res2', 'in', 'cut']"
        )
