"""Which records of what is on can be: the states that edits lead to, and no others."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rankwise.configs.heterolora import HeteroLoraConfig
from rankwise.paths.low_rank_path import LowRankPath
from rankwise.paths.path_set import PathSet
from rankwise.paths.state import Status
from rankwise.rules.budget import resolve_budget

AGAIN = "the file is damaged: copy it again"


def check_structure(model: nn.Module, paths: PathSet, given: dict[str, Tensor]) -> None:
    """Refuse records that no edits lead to, and contributing paths without weights.

    Args:
        model: The model, whose modules the names are of.
        paths: Its paths.
        given: The adapter's path tensors by name, of the right shapes.

    Raises:
        ValueError: Names the path, and says what its record is.
    """
    by_host = {id(path.host): path for path in paths.resident}
    ending = f".lora_allocation.{paths.adapter}"
    modules = [key.removesuffix(ending) for key in given if key.endswith(ending)]
    found = {module: by_host[id(model.get_submodule(module))] for module in modules}
    # One block's A stands for all, where they share it.
    shared = any(f"{module}.lora_A.{paths.adapter}.weight" in given for module, path in found.items() if path.shared)
    spans: list[tuple[int, int, str]] = []
    for module, path in found.items():
        status = _status(path, given[f"{module}{ending}"])
        needed = ["lora_B"] if path.shared and shared else ["lora_A", "lora_B"]
        factors = [f"{module}.{factor}.{paths.adapter}.weight" for factor in needed]
        lacking = [factor for factor in factors if factor not in given]
        if status.contributing and lacking:
            raise ValueError(f"the adapter lacks {lacking[0]!r}, although {path.own_name} is on: {AGAIN}")
        if path.kind == "layer" and status.available:
            spans.append((status.first, status.last, path.own_name))
    spans.sort()
    for (_, last, one), (first, _, other) in itertools.pairwise(spans):
        if first <= last:
            raise ValueError(f"the adapter's records of {one} and {other} both span block {first}: {AGAIN}")


def _status(path: LowRankPath, tensor: Tensor) -> Status:
    values = tensor.tolist()
    enabled, contributing, first, last, available = values
    block, present = path.built_block, path.status
    own = (block, block) if path.kind == "layer" else (present.first, present.last)
    wrong: str | None = None
    if tensor.dtype == torch.bool or not set(values[:2] + values[4:]) <= {0, 1}:
        wrong = "enabled, contributing and available are 0 or 1"
    elif enabled and not (available and contributing):
        wrong = "what is enabled is available and contributes"
    elif contributing and not available:
        wrong = "what is off for good does not contribute"
    elif path.kind == "layer" and available and not first <= block <= last:
        wrong = f"its span must hold block {block}"
    elif (path.kind != "layer" or not available) and (first, last) != own:
        wrong = f"its blocks are {own[0]} to {own[1]}"
    if wrong is not None:
        raise ValueError(
            f"the adapter's record of {path.own_name} is {values} (enabled, contributing, first block, last block, "
            f"available), but {wrong}: {AGAIN}"
        )
    return Status(bool(enabled), bool(contributing), first, last, bool(available))


def check_unvouched(paths: PathSet) -> None:
    """Refuse what may come of training or editing by hand, but in a file without digests more likely of damage.

    Raises:
        ValueError: A weight is not finite, or more is on than the budget allows.
    """
    for path in paths.resident:
        if not all(parameter.is_meta or bool(parameter.isfinite().all()) for parameter in path.parameters):
            raise ValueError(
                f"the adapter's weights of {path.own_name} hold NaN or infinity: {AGAIN}, or train it again at a lower "
                "rate"
            )
    config = paths.config
    if not isinstance(config, HeteroLoraConfig) or not config.acts:
        return
    limit = resolve_budget(config.budget, paths.built_costs(), config.budget_unit)
    on = _cost(paths.enabled, config.budget_unit)
    if on > limit:
        raise ValueError(
            f"the adapter has {on} {config.budget_unit} on, more than the {limit} of budget={config.budget!r}: "
            f"{AGAIN}; if they were switched on by hand, raise budget in adapter_config.json"
        )


def _cost(paths: Iterable[LowRankPath], unit: str) -> int:
    return sum(path.num_parameters if unit == "parameters" else 1 for path in paths)
