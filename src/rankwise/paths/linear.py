"""PEFT's LoRA layer, which computes its projection and its path in one go where it can."""

from __future__ import annotations

from typing import Any

from peft.tuners.lora import Linear
from torch import Tensor, nn

from rankwise.paths.fused import LowRankSum, common_dtype, fuses
from rankwise.paths.gate import Gate


class PathLinear(Linear):
    """A projection and the path beside it: ``y = x W0^T + bias + s x A^T B^T``.

    One function of autograd computes it where ``W0`` is a plain frozen ``nn.Linear`` and one adapter is active;
    everything else (merged, disabled, several adapters, dropout, quantised or sharded weights, mixed precisions
    outside autocast, hooks on the layers inside, ``torch.compile``) is PEFT's.
    """

    base_layer: nn.Module

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return ``y`` (.., o) for ``x`` (.., i)."""
        gate = None if args or kwargs else self._only_gate()
        fused = self._fused(gate, x) if gate is not None else None
        if gate is None or fused is None:
            y: Tensor = super().forward(x, *args, **kwargs)
            return y
        return gate.observe(self, x, fused)

    def _only_gate(self) -> Gate | None:
        """Return the one switch that the forward pass has to ask; None where there are several, or none."""
        if self.disable_adapters or self.merged:
            return None
        gates = [self.lora_variant.get(name) for name in self.active_adapters if name in self.lora_A]
        return gates[0] if len(gates) == 1 and isinstance(gates[0], Gate) else None

    def _fused(self, gate: Gate, x: Tensor) -> Tensor | None:
        """Return ``y`` where it can be computed in one go, else None."""
        base: Any = self.base_layer
        adapter, factors = gate.path.adapter, gate.factors()
        if factors is None or not fuses(self, base, self.lora_A[adapter], self.lora_B[adapter]):
            return None
        frozen = [base.weight] if base.bias is None else [base.weight, base.bias]
        dropout = self.lora_dropout[adapter]
        drops = gate.trains() and dropout.training and not isinstance(dropout, nn.Identity)
        dtype = common_dtype(x, *factors, *frozen)
        if dtype is None or drops or any(tensor.requires_grad for tensor in frozen):
            return None
        return LowRankSum.apply(x, *factors, gate.path.scaling, dtype, None, base.weight, base.bias)
