"""``HeteroLoraModel`` and ``Lor2cModel``: PEFT's LoRA tuner with a switch in front of every path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from accelerate import init_empty_weights
from peft import PeftConfig
from peft.tuners.lora import Linear, LoraLayer, LoraModel
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.configs.path import PathConfig
from rankwise.method.first import first_allocation
from rankwise.method.initial import seeded
from rankwise.method.loading import completed, shared_downs
from rankwise.method.oversized import check_ranks
from rankwise.method.own_weights import check_own_weights
from rankwise.method.ranks import lookalikes, resolve_ranks
from rankwise.method.targets import (
    all_of,
    check_gated,
    check_gated_merge,
    check_layers,
    check_linear,
    check_targets,
    means_all,
    module_names,
)
from rankwise.method.unused import told_by_us, warn_forgotten, warn_unused
from rankwise.method.unwinding import unwound
from rankwise.method.waking import before_forward
from rankwise.paths.driver import driver
from rankwise.paths.gate import Gate
from rankwise.paths.linear import PathLinear
from rankwise.paths.low_rank_path import LowRankPath
from rankwise.paths.path_set import PathSet, PathSets, check_mergeable, crossings, live_shortcuts, path_set
from rankwise.paths.state import AllocationState, Status, check_name
from rankwise.wiring.block_host import BlockHost
from rankwise.wiring.names import locate, path_names
from rankwise.wiring.wiring import Wiring


class PathModel(LoraModel):
    """A model with paths: PEFT's LoRA layers and block paths, each behind a switch."""

    prefix: str = "lora_"
    _to_merge: list[str] | None = None

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Build the adapter's paths; see ``peft.tuners.tuners_utils.BaseTuner.inject_adapter``.

        Raises:
            ValueError: A target names no module of the model (the message names the nearest that exist), or the
                model can't have the shortcuts asked for. The model is as it was before, then.
        """
        with unwound(model):
            self._inject(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict)

    def _inject(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool,
        low_cpu_mem_usage: bool,
        state_dict: dict[str, Tensor] | None,
    ) -> None:
        check_name(adapter_name)
        config = self.peft_config[adapter_name]
        assert isinstance(config, PathConfig)
        wiring = _wiring_for(model, config)
        modules = module_names(model)
        with _linear_targets(config, wiring):
            if means_all(config):
                config.target_modules = all_of(model, config)
            # PEFT's order: names of the family first, so that the checks see what PEFT will look for; then the checks,
            # as long as nothing is built; then PEFT builds.
            self._prepare_adapter_config(config, self.get_model_config(model))
            check_targets(model, config)
            check_layers(model, config, self._check_target_module_exists)
            check_linear(model, partial(self._check_target_module_exists, config))
            resolve_ranks(config, partial(self._projections, model, config), wiring)
            check_ranks(model, config)
            # PEFT refuses an empty list but knows a dummy that matches nothing; None means block paths decide, and
            # stays.
            config.target_modules = config.target_modules or (
                DUMMY_TARGET_MODULES if config.target_modules is not None else None
            )
            with told_by_us():
                super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict)
        # PEFT's own injection makes its layers empty inside; ours come after it and need the same.
        context = init_empty_weights if low_cpu_mem_usage else nullcontext
        with context():
            block_paths = self._build_block_paths(model, adapter_name, config, wiring)
        self._build_paths(model, adapter_name, config, wiring, block_paths)
        warn_unused(config, modules, self.targeted_module_names)
        warn_forgotten(config, model)

    def _add_targets_to_tie(self, peft_config: Any, tied_weight_keys: list[str]) -> None:
        """Refuse: PEFT would build LoRA on the embedding, which no gate switches.

        Raises:
            ValueError: Says what to leave out.
        """
        raise ValueError(
            f"ensure_weight_tying=True with target_modules={peft_config.target_modules!r} would put LoRA on the "
            f"embedding, which {', '.join(sorted(tied_weight_keys))} is tied to, and a path runs along a linear "
            "projection: leave ensure_weight_tying out, or the tied layer out of target_modules"
        )

    def _projections(self, model: nn.Module, config: PathConfig) -> list[nn.Module]:
        """Return the modules that get a linear path."""
        _maybe_include_all_linear_layers(config, model)
        return [
            module
            for name, module in model.named_modules()
            if config.target_modules and self._check_target_module_exists(config, name)
        ]

    def _build_block_paths(
        self, model: nn.Module, adapter: str, config: PathConfig, wiring: Wiring | None
    ) -> list[LowRankPath]:
        """Make the modules of the shortcuts; linear paths are PEFT's to make."""
        if wiring is None:
            return []
        wiring.connect(model)
        paths: list[LowRankPath] = []
        share = config.block_paths().share
        for name, (kind, block, module) in wiring.names(config).items():
            host = wiring.host(model, kind, block)
            with seeded(config.seed, module, adapter):
                host.add(adapter, config, name, wiring.like(block))
            if share and paths:
                host.lora_A[adapter] = paths[0].host.lora_A[adapter]
            host.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
            paths.append(LowRankPath(name, kind, module, host, adapter, share))
        return paths

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
        """Draw initial values from a generator seeded by names; the global one stays where it was."""
        sized = lora_config.linear_paths()
        if isinstance(target, Conv1D):  # always transposed: nothing that a user has to say
            sized.fan_in_fan_out = True
        with seeded(lora_config.seed, current_key, adapter_name):
            super()._create_and_replace(sized, adapter_name, target, target_name, parent, current_key, **kwargs)

    @staticmethod
    def _create_new_module(lora_config: Any, adapter_name: str, target: nn.Module, **kwargs: Any) -> nn.Module:
        """Build what PEFT builds; its layer over a plain projection becomes one that computes both in one go."""
        module: nn.Module = LoraModel._create_new_module(lora_config, adapter_name, target, **kwargs)
        if type(module) is Linear:  # PEFT chose it among its layers and drew its values: only its forward changes
            module.__class__ = PathLinear
        return module

    def _build_paths(
        self,
        model: Any,
        adapter: str,
        config: PathConfig,
        wiring: Wiring | None,
        block_paths: list[LowRankPath],
    ) -> None:
        hosts: dict[str, Any] = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, LoraLayer) and not isinstance(module, BlockHost) and adapter in module.lora_A
        }
        check_gated(hosts)
        # Names are given as in the base model, whatever an earlier adapter has wrapped.
        bare = [name.replace(".base_layer", "") for name, _ in model.named_modules() if ".lora_" not in name]
        names = path_names(hosts, bare)
        linear = [LowRankPath(names[module], "linear", module, host, adapter) for module, host in hosts.items()]
        alike = [module for module in lookalikes(hosts, dict.fromkeys(bare)) if module not in hosts]
        paths = PathSet(adapter, config, [*linear, *block_paths], alike, self.peft_config)
        if "rankwise_paths" not in model.__dict__:
            model.rankwise_paths = PathSets(model.register_forward_pre_hook(before_forward))
        model.rankwise_paths.wiring = wiring or model.rankwise_paths.wiring
        copied_from = _structure_of(model, config)
        for path in paths.resident:
            waits = path.kind == "linear" and config.linear_waits
            if "lora_allocation" not in path.host._modules:
                path.host.lora_allocation = AllocationState()
                path.host.other_param_names += ("lora_allocation",)  # what PEFT moves with a layer and deletes from it
            # A second adapter made from the very config of a present one takes its structure over; see _structure_of.
            status = copied_from.get(path.own_name, Status(False, False, *_span(path), not waits))
            path.state.put(adapter, status, path.lora_B.device)
            # PEFT asks a layer's variant instead of adding B A x itself: the one place where a path can be switched.
            path.host.lora_variant[adapter] = Gate(path, paths)
        config.check_waiting({path.built_block for path in linear})
        named = paths.paths
        for name in [] if copied_from else first_allocation(paths):
            named[name].set_(enabled=True, contributing=True)
        model.rankwise_paths[adapter] = paths

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: PEFT would sum the weights of paths that are off into the new adapter.

        Raises:
            ValueError: Always; says what to do instead.
        """
        raise ValueError(
            "add_weighted_adapter() would bring back paths that are off: where the adapters have LoRA alone, write "
            "each with rankwise.export_lora and combine those; block paths can't be combined"
        )

    def update_and_allocate(self, global_step: int) -> None:
        """Do what is due after an optimizer step; harmless where the search already ran by itself.

        Loops written for AdaLoRA call this after ``optimizer.step()``. Steps are counted by the optimizer's own hooks,
        so ``global_step`` only has to be a step's number; it is not used.
        """
        for adapter in self.active_adapters:
            if adapter in self.model.rankwise_paths:
                driver().update_and_allocate(self.model.rankwise_paths[adapter])

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter, its paths and its search."""
        super().delete_adapter(adapter_name)
        paths = self.model.rankwise_paths.pop(adapter_name, None)
        if paths is not None:
            driver().forget(paths)
            for path in paths.resident:
                path.state.remove(adapter_name)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Refuse batches that mix adapters where a shortcut is live: PEFT splits them at linear layers only.

        Raises:
            ValueError: Names the shortcuts.
        """
        if kwargs.get("adapter_names") is not None:
            for paths in self.model.rankwise_paths.values():
                live = live_shortcuts(paths) or (crossings(paths) if paths.norm == "reapply" else [])
                if live:
                    raise ValueError(
                        f"adapter_names can't be given while shortcuts are live ({', '.join(live[:5])}): run one "
                        "adapter at a time with set_adapter()"
                    )
        with super()._enable_peft_forward_hooks(*args, **kwargs):
            yield

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge adapters into the base, which can be undone; see ``peft.tuners.tuners_utils.BaseTuner``.

        Raises:
            ValueError: One of them has live block paths.
        """
        with self._merging(adapter_names):
            super().merge_adapter(adapter_names, safe_merge)

    @contextmanager
    def _merging(self, adapter_names: list[str] | None) -> Iterator[None]:
        self._to_merge = adapter_names
        try:
            yield
        finally:
            self._to_merge = None

    def _check_merge_allowed(self) -> None:
        """Refuse to merge what has no weight to merge into, and where PEFT's layer would merge paths that are off.

        Raises:
            ValueError: Names the paths.
        """
        super()._check_merge_allowed()
        names = self._to_merge or self.active_adapters
        for paths in (sets for name, sets in self.model.rankwise_paths.items() if name in names):
            check_mergeable(paths)
            check_gated_merge(paths.resident)
            merged = [path for path in paths.resident if path.kind == "linear" and path.contributing]
            check_own_weights(self.model, {path.module: path.host for path in merged})

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        """Take the paths off the model, merged or not, and every trace of their searches."""
        sets: PathSets = self.model.__dict__["rankwise_paths"]
        with self._merging(kwargs.get("adapter_names")):
            if merge:
                self._check_merge_allowed()
            # PEFT puts a layer's base in its place, and a block path has none: its hosts must be gone by then.
            with sets.wiring.removed(self.model) if sets.wiring is not None else nullcontext():
                model: Any = super()._unload_and_optionally_merge(merge, *args, **kwargs)
        del model.__dict__["rankwise_paths"]
        sets.hook.remove()
        for paths in sets.values():
            driver().forget(paths)
        return model

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Return an adapter's tensors; an ``A`` that all blocks share is among them once."""
        state: dict[str, Tensor] = super()._get_adapter_state_dict(model, config, adapter_name, *args, **kwargs)
        if isinstance(config, PathConfig) and config.block_paths().share:
            others = shared_downs(state)[1:]
            state = {key: tensor for key, tensor in state.items() if key not in others}
        return state

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Map a checkpoint's names to the model's, strictly: an adapter of another model is refused, not half loaded.

        A file written with ``enabled_only`` lacks the weights of paths that don't contribute; they keep their initial
        values, which the seed determines.
        """
        loaded = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        return completed(loaded, model, path_set(model, adapter_name))


@contextmanager
def _linear_targets(config: PathConfig, wiring: Wiring | None) -> Iterator[None]:
    """Let ``target_modules`` be what PEFT shall build linear paths on, which may be nothing."""
    before = config.target_modules
    anatomy = wiring.anatomy if wiring is not None else None
    config.target_modules = config.linear_targets([anatomy.query, anatomy.value] if anatomy is not None else [])
    given = config.target_modules
    try:
        yield
    finally:  # what PEFT makes of None or "all-linear" stays, as in its own configs
        if (given is not None and not given) or config.linear_waits:
            config.target_modules = before


def _wiring_for(model: Any, config: PathConfig) -> Wiring | None:
    """Return what connects a model's block paths, checked against the config; None where none are asked for."""
    if not config.block_paths().kinds:
        return None
    present = model.__dict__["rankwise_paths"].wiring if "rankwise_paths" in model.__dict__ else None
    wiring = present or Wiring(model)
    wiring.check(config)
    config.check_blocks([block for _, block, _ in wiring.names(config).values()])
    return wiring


def _span(path: LowRankPath) -> tuple[int, int]:
    """Return the first and last block of a path as built, (-1, -1) outside the blocks."""
    if path.kind == "layer":
        block = int(path.module.rpartition(".")[2])
    else:
        place = locate(path.module)
        block = place.index if place is not None else -1
    return block, block


def _structure_of(model: Any, config: PathConfig) -> dict[str, Status]:
    """Return the structure of a present adapter built from the very same config object, if there is one.

    DPO makes its reference adapter that way and copies parameters only.
    """
    for paths in model.rankwise_paths.values():
        if paths.config is config:
            return {path.own_name: path.status for path in paths.resident}
    return {}


class HeteroLoraModel(PathModel):
    """LoRA modules and shortcuts as candidate paths, switched on and off under a budget (arXiv 2406.14956).

    Built by ``peft.get_peft_model(model, rankwise.HeteroLoraConfig(...))``. From the first step on, the enabled paths
    obey the budget: until the first search has scores, a random allocation drawn from the config's seed is live.
    """


class Lor2cModel(PathModel):
    """A low-rank residual connection across each block (arXiv 2503.00572).

    Built by ``peft.get_peft_model(model, rankwise.Lor2cConfig(...))``.
    """
