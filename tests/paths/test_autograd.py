"""The two autograd functions: one shows what passes, one ties parameters in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rankwise.paths.autograd import Tap, Tie

Seen = list[tuple[Tensor, Tensor]]


def noted(seen: Seen) -> object:
    return lambda x, g: seen.append((x, g))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_tap_shows_source_and_gradient_by_token_and_changes_nothing(checkpointed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    anchor = torch.empty(0, requires_grad=True)
    seen: Seen = []

    def tapped(x: Tensor) -> Tensor:
        found: Tensor = Tap.apply(x @ weight.T, x, anchor, noted(seen))
        return found

    loss = (checkpoint(tapped, x, use_reentrant=False) if checkpointed else tapped(x)).pow(2).sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    ((source, at_destination),) = seen
    assert torch.equal(source, x.reshape(6, 4))
    torch.testing.assert_close(at_destination, 2 * (x @ weight.detach().T).reshape(6, 5))
    torch.testing.assert_close(gradient, at_destination.T @ source)  # G = sum over tokens of g x^T


def test_a_tap_is_visited_where_nothing_else_trains() -> None:
    anchor = torch.empty(0, requires_grad=True)
    seen: Seen = []
    Tap.apply(torch.ones(1, 2), torch.ones(1, 3), anchor, noted(seen)).sum().backward()
    assert [tuple(t.shape) for t in seen[0]] == [(1, 3), (1, 2)]


def test_a_tie_fires_hooks_and_leaves_no_gradient() -> None:
    parameter, x = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    fired: list[bool] = []
    above = parameter.view_as(parameter).grad_fn
    assert above is not None
    node: Any = above.next_functions[0][0]  # the parameter's own node
    node.register_hook(lambda *_: fired.append(True))  # where DistributedDataParallel waits
    result = Tie.apply(x, parameter)
    assert torch.equal(result, x)
    (3 * result).sum().backward()
    assert fired
    assert parameter.grad is None
    assert x.grad is not None
    assert x.grad.tolist() == [3.0, 3.0]
