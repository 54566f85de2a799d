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
        if self.disable_adapters or self.merged_adapters:
            return None
        built: Any = self._modules["lora_A"]  # asked for all the time, see ``LowRankPath.state``
        gates = [self.lora_variant.get(name) for name in self.active_adapters if name in built._modules]
        return gates[0] if len(gates) == 1 and isinstance(gates[0], Gate) else None

    def _fused(self, gate: Gate, x: Tensor) -> Tensor | None:
        """Return ``y`` where it can be computed in one go, else None."""
        parts: Any = self._modules
        base, adapter, factors = parts["base_layer"], gate.path.adapter, gate.factors()
        down, up, dropout = (parts[part]._modules[adapter] for part in ("lora_A", "lora_B", "lora_dropout"))
        if factors is None or not fuses(self, base, down, up):
            return None
        weight, bias = base.weight, base.bias
        drops = dropout.training and not isinstance(dropout, nn.Identity) and gate.trains()
        dtype = common_dtype(x, *factors, weight, bias)
        if dtype is None or drops or weight.requires_grad or (bias is not None and bias.requires_grad):
            return None
        return LowRankSum.apply(x, *factors, self.scaling[adapter], dtype, None, weight, bias)
