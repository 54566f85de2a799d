"""The table of proxies: what it says of each is what scoring does."""

from __future__ import annotations

import pytest
import torch
from tests.models import adapted, tiny_bert

import rankwise
from rankwise.rules.proxies import PROXIES
from rankwise.scores.proxies import FORMULAS
from rankwise.scores.statistics import FactorGradients

NEEDS = {"nothing", "gradients", "curvature", "flow"}


def test_the_table_is_by_name_and_every_row_is_filled() -> None:
    assert {name: row.name for name, row in PROXIES.items()} == {name: name for name in PROXIES}
    assert {row.needs for row in PROXIES.values()} == NEEDS
    assert all(row.formula and row.reference for row in PROXIES.values())


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_asks_for_batches_where_it_needs_the_loss(name: str) -> None:
    model = adapted(tiny_bert(1), task_type="SEQ_CLS", target_modules=["query", "value"])
    if PROXIES[name].needs in ("nothing", "flow"):
        assert set(rankwise.score_paths(model, proxy=name)) == set(rankwise.named_paths(model))
        return
    with pytest.raises(ValueError, match=f"proxy='{name}' needs training batches, got none"):
        rankwise.score_paths(model, proxy=name)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_proxy_is_blind_where_its_formula_is_zero_for_a_zero_matrix(name: str) -> None:
    """By the factors' gradients of random tokens, with ``B = 0`` as training begins."""
    path = rankwise.named_paths(adapted(tiny_bert(1), task_type="SEQ_CLS", target_modules=["query"]))["layers.0.query"]
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(5, 16, generator=generator) for _ in range(2))
    with torch.no_grad():
        score = FORMULAS[name](path, FactorGradients().contribution(path, x, g))
    assert (score == 0.0) == PROXIES[name].blind_at_zero
