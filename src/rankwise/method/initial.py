"""The values that paths start with: functions of the seed and the names of module and adapter alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from rankwise.paths.path_set import PathSet
from rankwise.seeds import stable_seed


@contextmanager
def seeded(seed: int, module: str, adapter: str) -> Iterator[None]:
    """Draw from a generator seeded by (seed, module name, adapter) inside; the global one stays where it was.

    The name ``"default"`` is left out, so that single adapters start as they did in version 0.1. Paths that are off and
    were left out of a file start anew under the name that the adapter is loaded by; nothing but their start depends on
    it. Drawn on the CPU, and so the same everywhere, also where ``torch.set_default_device`` names an accelerator.
    """
    names = (module,) if adapter == "default" else (module, adapter)
    elsewhere = torch.get_default_device().type not in ("cpu", "meta")
    before = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(stable_seed(seed, *names))
        with torch.device("cpu") if elsewhere else nullcontext():
            yield
    finally:
        torch.set_rng_state(before)


def initial_value(key: str, paths: PathSet) -> Tensor:
    """Return what a factor starts with, for a model that was built without memory.

    Args:
        key: The tensor's name in a state dict.
        paths: The paths it is one of.

    Raises:
        ValueError: The initial values depend on the base's weights.
    """
    path = paths.owners([key])[key]
    init = paths.config.init_lora_weights
    if init == "orthogonal":
        raise ValueError(
            "the file lacks paths that are off, whose orthogonal start depends on the base: load it with "
            "low_cpu_mem_usage=False"
        )
    (r, i), o = path.lora_A.shape, path.lora_B.shape[0]
    with seeded(paths.config.seed, path.module, paths.adapter), torch.device("cpu"):
        down, up = nn.Linear(i, r, bias=False), nn.Linear(r, o, bias=False)  # drawn from, and in PEFT's order
        if init is True:
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        elif init == "gaussian":
            nn.init.normal_(down.weight, std=1 / r)
        if init:
            nn.init.zeros_(up.weight)
    return (down if ".lora_A." in key else up).weight.detach()
