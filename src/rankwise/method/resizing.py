"""Giving the paths of a live adapter other ranks, before an optimizer knows them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from rankwise.configs.heterolora import HeteroLoraConfig
from rankwise.method.initial import seeded
from rankwise.method.ranks import rank_fields
from rankwise.paths.low_rank_path import LowRankPath
from rankwise.paths.path_set import PathSet
from rankwise.rules.kinds import BLOCK_KINDS
from rankwise.wiring.block_host import BlockHost


def resize_(paths: PathSet, ranks: Mapping[str, int]) -> None:
    """Give every path its rank, made anew, and take those of rank 0 out; the adapter gets a config that builds this.

    What comes out equals what ``get_peft_model`` builds from the new config: initial values depend on the seed and the
    module's name alone. All paths are on afterwards, and the config's mode is ``"off"``.

    Args:
        paths: The paths of an adapter that was never trained, all at rank 1.
        ranks: The rank of each path by its name.
    """
    kept = [path for path in paths.resident if ranks[path.name]]
    scales = {path.kind == "linear": path.scaling for path in paths.resident}
    for path in paths.resident:
        if not ranks[path.name]:
            _take_out(path)
    others = [*(path.module for path in paths.resident), *paths.lookalikes]
    paths.become(copy.deepcopy(paths.config))  # the one given may build other models, whose ranks are others
    _describe_(paths.config, {path: ranks[path.name] for path in kept}, scales, others)
    for path in kept:
        _make_anew(path, paths.config, ranks[path.name])
        path.set_(enabled=True, contributing=True)
    paths.resident[:] = kept


def _describe_(
    config: HeteroLoraConfig, ranks: Mapping[LowRankPath, int], scales: Mapping[bool, float], others: Sequence[str]
) -> None:
    """Let a config name exactly these paths with these ranks; the scale of linear and of block paths stays."""
    linear = {path.module: rank for path, rank in ranks.items() if path.kind == "linear"}
    fields = rank_fields(linear, scales.get(True, 1.0), use_rslora=config.use_rslora, others=others)
    for name, value in fields.items():
        setattr(config, name, value)
    config.shortcut_ranks = {path.own_name: rank for path, rank in ranks.items() if path.kind != "linear"}
    config.shortcuts = [kind for kind in BLOCK_KINDS if any(path.kind == kind for path in ranks)]
    config.shortcut_r, config.shortcut_alpha = 1, scales.get(False, 1.0)
    config.layers_to_transform = config.layers_pattern = None
    config.mode = "off"


def _take_out(path: LowRankPath) -> None:
    """Remove an adapter's path from its module; the module stays, as it may hold another adapter's."""
    host: Any = path.host
    path.state.remove(path.adapter)
    host.lora_variant.pop(path.adapter)
    for name in (*host.adapter_layer_names, *host.other_param_names):
        held = getattr(host, name)
        if path.adapter in held:
            del held[path.adapter]


def _make_anew(path: LowRankPath, config: HeteroLoraConfig, rank: int) -> None:
    host, adapter, like = path.host, path.adapter, path.lora_A
    gate = host.lora_variant.pop(adapter)  # PEFT would ask it to set the layer up
    with seeded(config.seed, path.module, path.adapter):
        if isinstance(host, BlockHost):
            host.add(adapter, config, path.own_name, like)
        else:
            alpha = path.scaling * (rank**0.5 if config.use_rslora else rank)
            host.update_layer(adapter, rank, alpha, config.linear_paths())
    host.lora_variant[adapter] = gate
    for factor in (host.lora_A, host.lora_B):
        factor[adapter].to(device=like.device, dtype=like.dtype)
