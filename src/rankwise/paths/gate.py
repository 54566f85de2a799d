"""The switch in front of a path: what PEFT's LoRA layer runs instead of its own sum, and what a block path runs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor

from rankwise.paths.autograd import Tie
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

    def forward(  # type: ignore[override]
        self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """Return the destination with the path's contribution; ``x`` is (.., i), ``result`` (.., o)."""
        path, paths = self.path, self.paths
        if path.enabled or (paths.session.probing and path.available):
            dropped = module.lora_dropout[active_adapter](x)
            result = result + module.lora_B[active_adapter](module.lora_A[active_adapter](dropped)) * path.scaling
        elif path.contributing:
            result = result + F.linear(F.linear(x, path.lora_A.detach()), path.lora_B.detach()) * path.scaling
        if self.ties():
            result = Tie.apply(result, *path.parameters)
        if self._records(module):
            assert paths.session.recorder is not None
            result = paths.session.recorder.tap(path, x, result)
        return result

    def needs_source(self, module: Any) -> bool:
        """Tell whether the forward pass under way reads the path's source."""
        return self.path.contributing or (self.paths.session.probing and self.path.available) or self._records(module)

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
