"""The switch in front of a path: what PEFT's LoRA layer runs instead of its own sum, and what a block path runs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor

from rankwise.paths.autograd import Tie
from rankwise.paths.fused import LowRankSum, common_dtype, fuses
from rankwise.paths.low_rank_path import LowRankPath
from rankwise.paths.path_set import PathSet


class Gate(LoraVariant):
    """Adds ``s B A dropout(x)`` to a path's destination while the path is on, and nothing while it is off.

    A path that is off is not in the graph: no compute, no gradient, no memory. In distributed training it is tied in,
    see ``Tie``. While a scoring window is open the recorder sees the path's source and destination in either state.

    Args:
        path: The path.
        paths: The set it belongs to.
    """

    def __init__(self, path: LowRankPath, paths: PathSet) -> None:
        self.path = path
        self.paths = paths

    def init(self, module: Any, adapter_name: str, **_: Any) -> None:  # type: ignore[override]
        """Refuse: PEFT asks this where another method builds an adapter of the same name over this one.

        Raises:
            ValueError: Says what to do instead.
        """
        raise ValueError(
            f"adapter {adapter_name!r} already has a rankwise path here ({self.path.name}): call unload() or "
            "merge_and_unload() first, or give the new adapter another name"
        )

    def supports_lora_conversion(self) -> bool:
        """Return False: it would bring back paths that are off; ``rankwise.export_lora`` writes plain LoRA."""
        return False

    def forward(  # type: ignore[override]
        self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """Return the destination with the path's contribution; ``x`` is (.., i), ``result`` (.., o)."""
        factors = self.factors()
        if factors is not None:
            result = self._add(module, active_adapter, x, result, factors)
        return self.observe(module, x, result)

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Return ``A`` and ``B`` where the path contributes to the forward pass under way; a frozen one's detached."""
        path = self.path
        if self.trains():
            return path.lora_A, path.lora_B
        return (path.lora_A.detach(), path.lora_B.detach()) if path.contributing else None

    def trains(self) -> bool:
        """Tell whether the path's contribution in the forward pass under way has gradients and dropout."""
        return self.path.enabled or (self.paths.session.probing and self.path.available)

    def _add(self, module: Any, adapter: str, x: Tensor, result: Tensor, factors: tuple[Tensor, Tensor]) -> Tensor:
        path, down, up = self.path, module.lora_A[adapter], module.lora_B[adapter]
        trains = self.trains()
        source = module.lora_dropout[adapter](x) if trains else x
        if fuses(module, down, up) and common_dtype(source, *factors, result) == result.dtype:
            return LowRankSum.apply(source, *factors, path.scaling, result.dtype, result, None, None)
        if trains:
            return result + up(down(source)) * path.scaling
        return result + F.linear(F.linear(source, factors[0]), factors[1]) * path.scaling

    def observe(self, module: Any, x: Tensor, result: Tensor) -> Tensor:
        """Return the destination, tied to a path that is off, and with a tap on it while a window is open."""
        if self.ties():
            result = Tie.apply(result, *self.path.parameters)
        if self._records(module):
            assert self.paths.session.recorder is not None
            result = self.paths.session.recorder.tap(self.path, x, result)
        return result

    def needs_source(self, module: Any) -> bool:
        """Tell whether the forward pass under way reads the path's source."""
        return self.trains() or self.path.contributing or self._records(module)

    def ties(self) -> bool:
        """Tell whether the path is off and tied into the graph."""
        return self.paths.session.tied and not self.path.enabled and torch.is_grad_enabled()

    def _records(self, module: Any) -> bool:
        open_window = self.paths.session.recorder is not None and self.path.available and torch.is_grad_enabled()
        return open_window and (module.training or self.paths.session.probing)

    def merge_safe(self, module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:  # type: ignore[override]
        """Return the weight with the path's contribution added."""
        return orig_weight + self._delta(module, active_adapter, orig_weight)

    def merge_unsafe(self, module: Any, active_adapter: str, orig_weight: Tensor) -> None:  # type: ignore[override]
        """Add the path's contribution to the weight in place."""
        orig_weight.data += self._delta(module, active_adapter, orig_weight)

    def unmerge(self, module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:  # type: ignore[override]
        """Return the weight with the path's contribution taken out."""
        return orig_weight - self._delta(module, active_adapter, orig_weight)

    def _delta(self, module: Any, adapter: str, weight: Tensor) -> Tensor:
        if not self.path.contributing:
            return weight.new_zeros(())
        return module.get_delta_weight(adapter).to(weight.dtype)
