"""``HeteroLoraModel``: PEFT's LoRA tuner with a switch in front of every path."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import torch
from peft import PeftConfig
from peft.tuners.lora import Linear, LoraLayer, LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from rankwise.allocation.budget import allocate, resolve_budget
from rankwise.anatomy import locate, path_names
from rankwise.config import HeteroLoraConfig
from rankwise.errors import nearest
from rankwise.paths.driver import DRIVERS
from rankwise.paths.gate import Gate
from rankwise.paths.low_rank_path import LowRankPath
from rankwise.paths.path_set import PathSet, PathSets
from rankwise.paths.state import AllocationState, Status
from rankwise.seeds import stable_seed

FACTORS = ("lora_A", "lora_B")
# PEFT's layers that ask a gate in their forward pass; the others would train a path that is off. By name: the
# quantised ones exist only where their library does.
GATED_LAYERS = ("Linear", "Linear8bitLt", "Linear4bit", "GPTQLoraLinear", "HqqLoraLinear", "TorchaoLoraLinear")
UNGATED_MERGE = ("GPTQLoraLinear", "TorchaoLoraLinear")
NOT_LINEAR = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)


class HeteroLoraModel(LoraModel):
    """LoRA whose modules are candidate paths, switched on and off under a budget (arXiv 2406.14956).

    Built by ``peft.get_peft_model(model, rankwise.HeteroLoraConfig(...))``. From the first step on, the enabled paths
    obey the budget: until the first search has scores, a random allocation drawn from the config's seed is live.
    """

    prefix: str = "lora_"

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Build the adapter's paths; see ``peft.tuners.tuners_utils.BaseTuner.inject_adapter``.

        Raises:
            ValueError: A target names no module of the model; the message names the nearest that exist.
        """
        config = self.peft_config[adapter_name]
        assert isinstance(config, HeteroLoraConfig)
        _check_targets(model, config)
        self._check_kinds(model, config)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        self._build_paths(model, adapter_name, config)

    def _create_and_replace(  # type: ignore[override]
        self,
        lora_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        """Draw initial values from a generator seeded by (seed, module name); the global one stays where it was."""
        before = torch.get_rng_state()
        try:
            torch.default_generator.manual_seed(stable_seed(lora_config.seed, current_key))
            super()._create_and_replace(lora_config, adapter_name, target, target_name, parent, current_key, **kwargs)
        finally:
            torch.set_rng_state(before)

    def _check_kinds(self, model: nn.Module, config: HeteroLoraConfig) -> None:
        """Refuse targets that are no linear map, before anything is built."""
        for name, module in model.named_modules():
            base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
            if isinstance(base, NOT_LINEAR) and self._check_target_module_exists(config, name):
                raise ValueError(
                    f"target_modules matches {name!r}, a {type(base).__name__}; a path runs along a linear "
                    "projection: target linear layers only"
                )

    def _build_paths(self, model: Any, adapter: str, config: HeteroLoraConfig) -> None:
        hosts: dict[str, Any] = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, LoraLayer) and adapter in module.lora_A
        }
        for name, host in hosts.items():
            if type(host).__name__ not in GATED_LAYERS:
                raise ValueError(
                    f"target {name!r} became PEFT's {type(host).__name__}, whose LoRA can't be switched; load the base "
                    "unquantised or with bitsandbytes, GPTQ, HQQ or torchao"
                )
        bare = (name.replace(".base_layer", "") for name, _ in model.named_modules() if ".lora_" not in name)
        names = path_names(hosts, bare)
        paths = PathSet(
            adapter,
            config,
            [LowRankPath(names[module], "linear", module, host, adapter) for module, host in hosts.items()],
        )
        if "rankwise_paths" not in model.__dict__:
            model.rankwise_paths = PathSets(model.register_forward_pre_hook(_before_forward))
        copied_from = _structure_of(model, config)
        first = _first_allocation(paths)
        for path in paths.paths.values():
            on = path.name in first
            place = locate(path.module)
            block = place.index if place is not None else -1
            if "lora_allocation" not in path.host._modules:
                path.host.lora_allocation = AllocationState()
            status = copied_from.get(path.name, Status(on, on, block, block))
            path.state.put(adapter, status, path.host.lora_A[adapter].weight.device)
            path.host.lora_variant[adapter] = Gate(path, paths)
        model.rankwise_paths[adapter] = paths

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: PEFT would sum the weights of paths that are off into the new adapter.

        Raises:
            ValueError: Always; says what to do instead.
        """
        raise ValueError(
            "add_weighted_adapter() would bring back paths that are off: write each adapter with rankwise.export_lora "
            "and combine those"
        )

    def update_and_allocate(self, global_step: int) -> None:
        """Do what is due after an optimizer step; harmless where the search already ran by itself.

        Loops written for AdaLoRA call this after ``optimizer.step()``. Steps are counted by the optimizer's own hooks,
        so ``global_step`` only has to be a step's number; it is not used.
        """
        for adapter in self.active_adapters:
            if adapter in self.model.rankwise_paths:
                for driver in DRIVERS:
                    driver.update_and_allocate(self.model.rankwise_paths[adapter])

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter, its paths and its search."""
        super().delete_adapter(adapter_name)
        paths = self.model.rankwise_paths.pop(adapter_name, None)
        if paths is not None:
            for driver in DRIVERS:
                driver.forget(paths)
            for path in paths.paths.values():
                path.state.remove(adapter_name)

    def _check_merge_allowed(self) -> None:
        """Refuse to merge where PEFT's layer would merge paths that are off.

        Raises:
            ValueError: Names the first such path.
        """
        super()._check_merge_allowed()
        for paths in self.model.rankwise_paths.values():
            for path in paths.paths.values():
                if type(path.host).__name__ in UNGATED_MERGE and not path.contributing:
                    raise ValueError(
                        f"{path.name} is off, and PEFT's {type(path.host).__name__} would merge it all the same: "
                        "export the adapter with rankwise.export_lora, load that on the base, and merge it there"
                    )

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        """Take the paths off the model, merged or not, and every trace of their searches."""
        model: Any = super()._unload_and_optionally_merge(*args, **kwargs)
        sets: PathSets = model.__dict__.pop("rankwise_paths")
        sets.hook.remove()
        for paths in sets.values():
            for driver in DRIVERS:
                driver.forget(paths)
        return model

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Map a checkpoint's names to the model's, strictly: an adapter of another model is refused, not half loaded.

        A file written with ``enabled_only`` lacks the weights of paths that don't contribute; they keep their initial
        values, which the seed determines.
        """
        loaded = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        suffix = f".{adapter_name}"
        present = model.state_dict()
        own = {key: value for key, value in present.items() if _is_path_tensor(key, adapter_name)}
        given = {key: value for key, value in loaded.items() if _is_path_tensor(key, adapter_name)}
        _check_same_names(own, given)
        _check_same_shapes(present, loaded)
        off = {key for key in own if key not in given and not key.endswith(f"lora_allocation{suffix}")}
        return {**loaded, **{key: own[key] for key in off}}


def _is_path_tensor(key: str, adapter: str) -> bool:
    """Tell whether a tensor belongs to a path; one that the model has no place for still lacks the adapter's name."""
    *_, host, owner, last = ("", "", *key.split("."))
    if owner == "lora_allocation":
        return last == adapter
    return owner in FACTORS or (host in FACTORS and owner == adapter)


def _check_same_names(own: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    """Refuse names that the model lacks, and a path without its record."""
    unknown = sorted(set(given) - set(own))
    missing = sorted(key for key in own if ".lora_allocation." in key and key not in given)
    if unknown:
        raise ValueError(
            f"the adapter holds {len(unknown)} tensors that this model has no place for, the first {unknown[0]!r}"
            f"{nearest(unknown[0], own)}; it was made for another model or with other target_modules"
        )
    if missing:
        raise ValueError(
            f"the adapter lacks {len(missing)} of this model's paths, the first {missing[0]!r}; it was made for "
            "another model or with other target_modules, or the file is not whole"
        )


def _check_same_shapes(present: dict[str, Tensor], loaded: dict[str, Tensor]) -> None:
    """Refuse tensors of another shape, heads included."""
    differing = sorted(key for key in set(present) & set(loaded) if present[key].shape != loaded[key].shape)
    if differing:
        key = differing[0]
        raise ValueError(
            f"the adapter's {key!r} is {tuple(loaded[key].shape)} but this model's is {tuple(present[key].shape)} "
            f"({len(differing)} tensors differ); it was made for another model, another r or another number of labels"
        )


def _before_forward(module: Any, args: Any) -> None:
    """Wake the search of each adapter at its first training forward, and notice a step that was skipped."""
    if not (module.training and torch.is_grad_enabled()):
        return
    for paths in module.rankwise_paths.values():
        if paths.recorder is not None and not paths.probing and not torch.compiler.is_compiling():
            _drop_skipped_step(paths)
        idle = paths.allocator is None or not paths.allocator.begun
        if idle and paths.config.mode != "off" and paths.trains and not paths.probing:
            _wake(module, paths)


def _drop_skipped_step(paths: PathSet) -> None:
    """Forget what was recorded of gradients that were cleared without an optimizer step, as gradient scalers do."""
    enabled = paths.enabled
    if paths.recorder is not None and enabled and all(path.lora_B.grad is None for path in enabled):
        paths.recorder.drop()


@torch.compiler.disable
def _wake(model: nn.Module, paths: PathSet) -> None:
    for driver in DRIVERS:
        driver.wake(model, paths)


def _structure_of(model: Any, config: HeteroLoraConfig) -> dict[str, Status]:
    """Return the structure of a present adapter built from the very same config object, if there is one.

    DPO makes its reference adapter that way and copies parameters only.
    """
    for paths in model.rankwise_paths.values():
        if paths.config is config:
            return {name: path.state.status[paths.adapter] for name, path in paths.paths.items()}
    return {}


def _first_allocation(paths: PathSet) -> set[str]:
    """Return the allocation before any search: everything with ``mode="off"``, else a draw within the budget."""
    config, costs = paths.config, paths.costs()
    if config.mode == "off":
        return set(costs)
    unit = config.budget_unit
    budget = resolve_budget(config.budget, costs, unit)
    per_path = costs if unit == "parameters" else dict.fromkeys(costs, 1)
    generator = np.random.default_rng(stable_seed(config.seed, "first"))
    first = allocate(dict.fromkeys(costs, 1.0), per_path, budget, allocation=config.allocation, generator=generator)
    if budget > 0 and not first:
        warnings.warn(
            f"budget={config.budget!r} is {budget} {unit}, but the cheapest path costs {min(per_path.values())}: no "
            "path will ever train; raise the budget or lower r",
            stacklevel=2,
        )
    return first


def _check_targets(model: nn.Module, config: HeteroLoraConfig) -> None:
    """Refuse a target that names no module, naming the nearest projections that exist."""
    targets = config.target_modules
    if targets is None or targets == "all-linear":
        return
    names = [name.replace(".base_layer", "") for name, module in model.named_modules() if name]
    linear = {
        name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, (nn.Linear, Linear))
    }
    if isinstance(targets, str) and not any(re.fullmatch(targets, name) for name in names):
        raise ValueError(
            f"target_modules={targets!r} is a regular expression that matches no module of {type(model).__name__}"
            f"{nearest(targets, linear)}; its linear layers are {', '.join(sorted(linear - {'base_layer'}))}"
        )
    for target in [] if isinstance(targets, str) else sorted(targets):
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ValueError(
                f"target_modules names {target!r}, which matches no module of {type(model).__name__}"
                f"{nearest(target, linear)}; its linear layers are {', '.join(sorted(linear - {'base_layer'}))}"
            )
    if not targets:
        raise ValueError("target_modules=[] leaves nothing to search: name linear layers, such as ['q_proj', 'v_proj']")
