"""One trainable low-rank map from one point of the network to another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from rankwise.paths.state import AllocationState, Status
from rankwise.rules.kinds import BLOCK_KINDS


def dequantised_weight(module: nn.Module) -> Tensor:
    """Return a module's weight, dequantised where it is quantised."""
    own = module._parameters.get("weight")
    weight: Tensor = dequantize_module_weight(module)
    # On the CPU PEFT puts a copy in its place, in which bitsandbytes' 8 bits have lost the scales they compute by.
    if own is not None:
        module._parameters["weight"] = own
    return weight


@dataclass(eq=False)
class LowRankPath:
    """A path ``delta(x) = s B A dropout(x)``, seen through the module that holds its weights.

    Letters: ``A`` (r x i) down, ``B`` (o x r) up, ``s = lora_alpha / r``, ``W0`` (o x i) the frozen weight beside it,
    or the identity or zero that a block path runs along.

    Args:
        own_name: The path's name as built, unique in the model: ``layers.3.query``.
        kind: What its end points are: ``"linear"`` runs from the input of a projection to its output; the others are
            the rows of ``rankwise.rules.kinds``.
        module: Full name of the module it belongs to in the base model.
        host: The module that holds ``A`` and ``B``.
        adapter: The PEFT adapter it belongs to.
        shared: Whether all blocks use the same ``A``.
    """

    own_name: str
    kind: str
    module: str
    host: Any  # PEFT's layers are a mixin beside nn.Module, which a type can't say
    adapter: str
    shared: bool = False

    @property
    def name(self) -> str:
        """The path's name; a merged one is named by its span: ``layers.1-2.layer``."""
        status = self.status
        return f"layers.{status.first}-{status.last}.{self.kind}" if status.last > status.first else self.own_name

    @property
    def state(self) -> AllocationState:
        """The record of what is on, beside the weights."""
        state: AllocationState = self.host._modules["lora_allocation"]  # asked for all the time; a module's
        return state  # own attribute lookup takes five times as long

    @property
    def status(self) -> Status:
        """What is on, and where it runs."""
        status: Status = self.host._modules["lora_allocation"].status[self.adapter]
        return status

    @property
    def enabled(self) -> bool:
        """Whether the path trains and contributes."""
        return self.status.enabled

    @property
    def contributing(self) -> bool:
        """Whether the path's output is added; a frozen path contributes without being enabled."""
        return self.status.contributing

    @property
    def built_block(self) -> int:
        """The block that its weights belong to, whatever it spans now; -1 outside the blocks."""
        parts = self.own_name.split(".")
        return int(parts[1]) if parts[0] == "layers" and parts[1].isdigit() else -1

    @property
    def available(self) -> bool:
        """Whether it may be switched on."""
        return self.status.available

    @property
    def blocks(self) -> tuple[int, int]:
        """First and last block of the path, (-1, -1) outside the blocks."""
        status = self.status
        return status.first, status.last

    @property
    def lora_A(self) -> nn.Parameter:
        """The down projection, r x i."""
        return self._factor("lora_A")

    @property
    def lora_B(self) -> nn.Parameter:
        """The up projection, o x r."""
        return self._factor("lora_B")

    def _factor(self, side: str) -> nn.Parameter:
        module = self.host._modules[side]._modules[self.adapter]  # asked for all the time, see ``state``
        found = module._parameters.get("weight")
        parameter: nn.Parameter = module.weight if found is None else found  # what shards flatly keeps it elsewhere
        return parameter

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The path's own parameters."""
        return self.lora_A, self.lora_B

    @property
    def num_parameters(self) -> int:
        """How many parameters the path has: r (i + o), or o r where ``A`` is shared by all blocks."""
        return self.lora_B.numel() + (0 if self.shared else self.lora_A.numel())

    @property
    def r(self) -> int:
        """The rank."""
        return self.host.r[self.adapter]

    @property
    def scaling(self) -> float:
        """The scale s."""
        return self.host.scaling[self.adapter]

    @property
    def crosses(self) -> bool:
        """Whether ``shortcut_norm="reapply"`` adds it after a norm, which it runs again."""
        return self.kind in BLOCK_KINDS and BLOCK_KINDS[self.kind].crosses

    @property
    def live(self) -> bool:
        """Whether it makes, or while it trains may make, a difference: enabled, or frozen with ``B`` not zero."""
        return self.enabled or (self.contributing and bool(self.lora_B.any()))

    def base_weight(self) -> Tensor:
        """Return ``W0``, o x i: dequantised where the base is quantised, the identity or zero for a block path."""
        if self.kind in BLOCK_KINDS:
            make = torch.eye if BLOCK_KINDS[self.kind].identity else torch.zeros
            size = self.lora_B.shape[0]
            return make(size, size, dtype=self.lora_B.dtype, device=self.lora_B.device)
        weight = dequantised_weight(self.host.get_base_layer())
        return weight.T if self.host.fan_in_fan_out else weight

    @torch.no_grad()
    def effective_weight(self, *, absolute: bool = False) -> Tensor:
        """Return the matrix that the path makes: ``W0 + s B A``, o x i, in the dtype of ``B``.

        Args:
            absolute: Take ``|W0| + s |B| |A|`` instead.
        """
        a: Tensor = self.lora_A
        b: Tensor = self.lora_B
        base = self.base_weight().to(b.dtype)
        if absolute:
            a, b, base = a.abs(), b.abs(), base.abs()
        return base + self.scaling * (b @ a)

    def set_(self, **status: Any) -> None:
        """Change the path's status; ``rankwise.apply_`` is the way to do it from outside."""
        self.stage_(**status)
        write_([self])

    def stage_(self, **status: Any) -> None:
        """Change the path's status and leave its tensor behind, which ``write_`` brings up to it."""
        self.state.status[self.adapter] = self.status._replace(**status)

    def __repr__(self) -> str:
        """Say what it is and whether it is on."""
        state = "enabled" if self.enabled else "frozen" if self.contributing else "disabled"
        return f"LowRankPath({self.name!r}, r={self.r}, {self.num_parameters} parameters, {state})"


def write_(paths: Iterable[LowRankPath]) -> None:
    """Bring the tensors of some paths up to their status: one copy to a device, however many paths there are."""
    devices: defaultdict[torch.device, list[LowRankPath]] = defaultdict(list)
    for path in paths:
        devices[path.state[path.adapter].device].append(path)
    for device, own in devices.items():
        values = torch.tensor([path.status for path in own], dtype=torch.int64, device="cpu")
        for path, row in zip(own, values.to(device), strict=True):
            path.state.write_(path.adapter, row)
