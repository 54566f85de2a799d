"""The module that holds the weights of a block path: what PEFT's LoRA layer is for a linear one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rankwise.configs.path import PathConfig


class BlockHost(nn.Module, LoraLayer):
    """``A`` and ``B`` of the paths of one kind in one block, one pair per adapter.

    There is no weight beside them: the identity or zero that a path runs along is the network's own code.

    Args:
        width: The hidden size d.
        like: Returns a weight of the block, whose device and precision its paths take.
    """

    def __init__(self, width: int, like: Callable[[], Tensor]) -> None:
        nn.Module.__init__(self)
        self.width, self.like = width, like
        LoraLayer.__init__(self, nn.Identity())

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        return self.width, self.width

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move an adapter's path to where its block is; PEFT reads a file's tensors onto the accelerator, if any."""
        if device is None and not (like := self.like()).is_meta:
            device = like.device
        super()._move_adapter_to_device_of_base_layer(adapter_name, device=device)

    def add(self, adapter: str, config: PathConfig, name: str, like: Tensor) -> None:
        """Make ``A`` (r x d) and ``B`` (d x r) of an adapter's path, on the device and in the precision of ``like``.

        Args:
            adapter: The adapter.
            config: Its config.
            name: The path's name, by which it may have a rank of its own at the scale of all.
            like: Any floating weight of the block.
        """
        own, sizes = copy.copy(config), config.block_paths()
        own.lora_dropout = sizes.dropout
        r = sizes.r if sizes.ranks is None else sizes.ranks[name]
        alpha = sizes.alpha * (r / sizes.r) ** (0.5 if config.use_rslora else 1.0)
        self.update_layer(adapter, r, alpha, own)
        if self.lora_A[adapter].weight.device.type != "meta":
            self.lora_A[adapter].to(device=like.device, dtype=like.dtype)
            self.lora_B[adapter].to(device=like.device, dtype=like.dtype)

    def live(self) -> list[str]:
        """Return the adapters that are active and have a path here."""
        if self.disable_adapters:
            return []
        return [adapter for adapter in self.active_adapters if adapter in self.lora_variant]

    def gate(self, adapter: str) -> Any:
        """Return the switch of an adapter's path."""
        return self.lora_variant[adapter]

    def needs_source(self, adapters: Sequence[str]) -> bool:
        """Tell whether one of the adapters' paths reads its source in the forward pass under way."""
        return any(self.gate(adapter).needs_source(self) for adapter in adapters)

    def forward(self, x: Tensor | None, result: Tensor, adapters: Sequence[str], **_: Any) -> Tensor:
        """Return ``result`` with the contributions of the adapters' paths.

        Args:
            x: The source, of the shape of ``result`` or its tokens flattened; None where nobody needs it.
            result: The destination (.., d).
            adapters: Whose paths.
            **_: What PEFT puts into the calls of all its LoRA layers.
        """
        dtype, device = result.dtype, result.device
        for adapter in adapters:
            gate = self.gate(adapter)
            down = gate.path.lora_A
            place = device if down.is_meta else down.device  # the source's block may lie on another device than this
            source = None if x is None else self._cast_input_dtype(x.reshape(result.shape), down.dtype).to(place)
            result = gate.forward(self, adapter, source, result.to(place))
        return result.to(device, dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge nothing: the model refuses to merge while a block path is live."""

    def unmerge(self) -> None:
        """Unmerge nothing."""
