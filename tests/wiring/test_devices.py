"""Blocks that Accelerate has laid on several devices."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from tests.models import adapted
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rankwise.wiring import anatomy


class Block(nn.Module):
    """A block that only adds and multiplies, which torch's stand-ins for tensors on other devices can."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2, self.mlp = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, hidden_states: Tensor) -> Tensor:
        middle = hidden_states + self.attention(self.norm1(hidden_states))
        added: Tensor = middle + self.mlp(self.norm2(middle))
        return added


ADDING = anatomy.pre_norm(
    feed_forward_norm="norm2", feed_forward_last="mlp", query="attention", value="attention", attention="attention",
    attention_norm="norm1",
)  # fmt: skip


class OnSeveral(nn.Module):
    """Three such blocks, each on a device of its own, as Accelerate lays them out."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="on several", to_dict=dict)
        self.layers = nn.ModuleList([Block(), Block(), Block()])
        for number, block in enumerate(self.layers):
            place = AlignDevicesHook(execution_device=torch.device("cuda", number), io_same_device=False)
            add_hook_to_module(block, place)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.layers:
            x = block(x)
        return x


@pytest.mark.parametrize("kind", ["res1", "res2", "in", "layer"])
def test_a_path_may_run_from_one_device_to_another(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate moves a block's inputs inside its forward pass, after the source was taken."""
    monkeypatch.setattr(anatomy, "FAMILIES", {**anatomy.FAMILIES, "on several": ADDING})
    model = adapted(OnSeveral(), r=2, target_modules=[], shortcuts=[kind], mode="off").eval()
    with FakeTensorMode(), torch.no_grad():
        for name, module in model.named_modules():
            number = re.findall(r"layer\w*\.(\d)", name)
            for key, parameter in [*module._parameters.items()]:
                if parameter is not None:
                    module._parameters[key] = nn.Parameter(torch.empty(parameter.shape, device=f"cuda:{number[0]}"))
        assert model(torch.empty(2, 3, 8, device="cuda:0")).device == torch.device("cuda", 2)


def test_cut_is_refused_where_a_block_takes_no_other_keywords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anatomy, "FAMILIES", {**anatomy.FAMILIES, "on several": ADDING})
    with pytest.raises(ValueError, match=r"'cut'.*'layers\.0' \(Block\) takes none but its own: give its forward"):
        adapted(OnSeveral(), r=2, target_modules=[], shortcuts=["cut"], mode="off")
