"""A plain LoRA adapter from the paths that contribute, for tools that don't know rankwise."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from rankwise.files import write_atomic, write_text_atomic
from rankwise.method.conversion import converted, refuse_converted
from rankwise.method.heads import WRAPPED
from rankwise.method.ranks import lookalikes, pattern_of, targets_of
from rankwise.paths.low_rank_path import LowRankPath
from rankwise.paths.path_set import PathSet, check_mergeable, path_set


def export_lora(
    model: PeftModel, folder: str | Path, *, rank_pattern: bool = False, adapter: str | None = None
) -> None:
    """Write the contributing paths as an ordinary ``peft_type: LORA`` adapter.

    The config names exactly the contributing modules (enabled, or frozen with ``B`` not zero), by full name. By
    default it has one ``r`` and one ``lora_alpha``: smaller ranks are padded with zeros to the largest and other
    scales are folded into ``B``, because servers that batch adapters read no patterns. The logits stay the same.

    Args:
        model: A model made by ``peft.get_peft_model`` with rankwise paths.
        folder: Where ``adapter_config.json`` and ``adapter_model.safetensors`` go.
        rank_pattern: Keep each path's own rank and scale through ``rank_pattern`` and ``alpha_pattern``.
        adapter: The adapter to export; the active one if left out.

    Raises:
        ValueError: The model has no rankwise paths, none contributes, block paths are live, or paths on modules that
            PEFT takes for experts.
    """
    paths = path_set(model, adapter)
    check_mergeable(paths)
    live = [path for path in paths.paths.values() if path.live]
    if not live:
        raise ValueError("no path contributes, so there is nothing to export: the adapter equals the base model")
    alike = [*(path.module for path in paths.resident), *paths.lookalikes]
    refuse_converted(
        converted(model.get_base_model(), [path.module for path in live], alike),
        "keep the adapter as it is, with model.save_pretrained(folder), or merge it into the base, with "
        "model.merge_and_unload()",
    )
    rank = max(path.r for path in live)
    scaling = live[0].scaling
    tensors = _other_tensors(model, paths.adapter)
    for path in live:
        a, b = path.lora_A.detach(), path.lora_B.detach()
        if not rank_pattern:
            a = F.pad(a, (0, 0, 0, rank - path.r))
            b = F.pad(b, (0, rank - path.r)) * (1.0 if path.scaling == scaling else path.scaling / scaling)
        tensors[f"{WRAPPED}{path.module}.lora_A.weight"] = a
        tensors[f"{WRAPPED}{path.module}.lora_B.weight"] = b
    write_adapter(folder, _config(paths, live, rank, scaling, rank_pattern), tensors)


def write_adapter(folder: str | Path, config: LoraConfig, tensors: dict[str, Tensor]) -> None:
    """Write a LoRA adapter folder, each file in one move."""
    ready = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    target = Path(folder)
    write_atomic(target / "adapter_model.safetensors", lambda path: save_file(ready, path, metadata={"format": "pt"}))
    with tempfile.TemporaryDirectory() as scratch:
        config.save_pretrained(scratch)
        text = (Path(scratch) / "adapter_config.json").read_text(encoding="utf-8")
    write_text_atomic(target / "adapter_config.json", text)


def _other_tensors(model: PeftModel, adapter: str) -> dict[str, Tensor]:
    """Return the head's and ``modules_to_save``'s tensors, under the names of a saved adapter."""
    state: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return {key: value for key, value in state.items() if ".lora_" not in key}


def plain_config(config: LoraConfig, modules: Iterable[str], others: Iterable[str], **fields: Any) -> LoraConfig:
    """Return a plain LoRA config on the given modules and no others that shares what is not about searching."""
    return LoraConfig(
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        lora_dropout=config.lora_dropout,
        modules_to_save=list(dict.fromkeys(config.modules_to_save or ())) or None,  # PEFT adds a head's when loading
        trainable_token_indices=config.trainable_token_indices,
        fan_in_fan_out=config.fan_in_fan_out,
        target_modules=targets_of(modules, others),
        **fields,
    )


def _config(paths: PathSet, live: list[LowRankPath], rank: int, scaling: float, rank_pattern: bool) -> LoraConfig:
    modules = [path.module for path in live]
    # Bare names where they are enough: not every tool reads expressions.
    name = pattern_of if lookalikes(modules, modules) else str
    alpha = {path: path.scaling * path.r for path in live}
    ranks = {name(path.module): path.r for path in live if path.r != rank}
    alphas = {name(path.module): _whole(alpha[path]) for path in live if alpha[path] != scaling * rank}
    exported = plain_config(
        paths.config,
        modules,
        [*(path.module for path in paths.resident), *paths.lookalikes],
        r=rank,
        lora_alpha=_whole(scaling * rank),
        rank_pattern=ranks if rank_pattern else {},
        alpha_pattern=alphas if rank_pattern else {},
    )
    exported.inference_mode = True
    return exported


def _whole(value: float) -> Any:
    return int(value) if float(value).is_integer() else value
