"""Blocks compiled one by one, and graphs that break inside a block: what crosses from frame to frame arrives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from tests.families import FAMILIES
from tests.models import tokens
from torch import Tensor, nn

import rankwise
from rankwise.wiring.anatomy import anatomy_of, find_blocks

# Norms after the sums, and a residual that is taken before the sum.
KINDS = {"bert": ["res1", "in", "cut", "layer"], "opt-pre": ["res1", "res2", "cut"]}


def made(name: str) -> Any:
    torch._dynamo.reset()
    config = rankwise.HeteroLoraConfig(target_modules=[], shortcuts=KINDS[name], r=2, mode="off")
    model = get_peft_model(FAMILIES[name](2), config, autocast_adapter_dtype=False).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path in rankwise.named_paths(model).values():
            path.lora_B.copy_(torch.randn(path.lora_B.shape, generator=generator))
    return model


def outcome(model: Any) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    logits: Tensor = model(input_ids=tokens()).logits
    logits.square().mean().backward()
    paths: Any = rankwise.named_paths(model).values()
    return logits.detach(), [path.lora_A.grad.clone() for path in paths]


def blocks(model: Any) -> list[nn.Module]:
    base = model.get_base_model()
    return list(find_blocks(base, anatomy_of(base)).values())


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # as torch looks at what it finds
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how"), [("bert", "block by block"), ("bert", "with a break inside"), ("opt-pre", "with a break inside")]
)
def test_compiled_in_pieces_it_is_the_same(name: str, how: str) -> None:
    model = made(name)
    logits, gradients = outcome(model)
    assert not torch.equal(logits, outcome(without(made(name), "cut"))[0])
    for block in blocks(model):
        if how == "block by block":
            block.compile(backend="eager")
        else:
            *_, widens, _ = (module for module in block.modules() if isinstance(module, nn.Linear))
            widens.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    if how != "block by block":
        model.compile(backend="eager")
    found, of_paths = outcome(model)
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(of_paths, gradients, rtol=0, atol=1e-12)


def without(model: Any, kind: str) -> Any:
    """The same with all paths of a kind off, but in the graph, as their gradients are asked for."""
    for path in rankwise.named_paths(model).values():
        if path.kind == kind:
            path.lora_B.data.zero_()
    return model
