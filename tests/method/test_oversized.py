"""Ranks that no matrix can have: told where they are legal, refused before they take memory where they are slips."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.models import class_batches, tiny_bert, tiny_llama
from tests.runs.conftest import Make, make
from torch import nn

import rankwise
from rankwise.method.oversized import check_ranks
from rankwise.runs.building.models import adapt, load_base

__all__ = ["make"]  # a fixture
HUGE = 10**9  # a factor of that height and 16 numbers is 64 GB
Q: dict[str, Any] = {"target_modules": ["q_proj"], "mode": "off"}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (lambda: rankwise.HeteroLoraConfig(r=HUGE, **Q), "r=1000000000 is above"),
        (lambda: rankwise.HeteroLoraConfig(r=10**30, **Q), "r=1000000000000000000000000000000 is above"),
        (lambda: rankwise.HeteroLoraConfig(rank_pattern={"q_proj": HUGE}, **Q), r"rank_pattern\['q_proj'\]=10"),
        (lambda: rankwise.HeteroLoraConfig(shortcuts=["res1"], shortcut_r=HUGE, **Q), "shortcut_r=10"),
        (
            lambda: rankwise.HeteroLoraConfig(shortcuts=["res1"], shortcut_ranks={"layers.0.res1": HUGE}, **Q),
            r"shortcut_ranks\['layers\.0\.res1'\]=10",
        ),
        (
            lambda: rankwise.HeteroLoraConfig(rank_budget=64 * HUGE, **Q),
            # Two projections of 16 x 16 cost 64 parameters a rank.
            r"r=1000000000 \(of rank_budget=64000000000\) is above",
        ),
        (lambda: rankwise.Lor2cConfig(r=HUGE), "r=10"),
        (lambda: rankwise.Lor2cConfig(injections=1, inject_r=HUGE), "inject_r=10"),
    ],
)
def test_a_rank_far_above_every_matrix_is_refused_before_it_takes_memory(config: Any, name: str) -> None:
    base = tiny_llama()
    before = [each for each, _ in base.named_modules()]
    words = rf"^{name}.* 8 times 16, the largest rank that a linear layer of LlamaForCausalLM can have"
    with pytest.raises(ValueError, match=words):
        get_peft_model(base, config())
    assert [each for each, _ in base.named_modules()] == before


def test_a_rank_above_every_matrix_is_legal_and_told(caplog: pytest.LogCaptureFixture) -> None:
    """A base of 384 to 384 and back to 1,536: 512 can be had, and 384 is as much as any can use."""
    base = nn.Sequential(nn.Linear(384, 384), nn.ReLU(), nn.Linear(384, 1536))
    model = get_peft_model(base, rankwise.HeteroLoraConfig(r=512, target_modules=["0"], mode="off"))
    assert isinstance(model, PeftModel)
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told.startswith("r=512 is above 384, the largest rank that a linear layer of Sequential can have")
    caplog.clear()
    for rank, of in ((384, 384), (1024, 16)):  # as high as a matrix; small models have ranks that are no slips
        check_ranks(nn.Linear(of, of), LoraConfig(r=rank))
    assert [record.getMessage()[:6] for record in caplog.records] == ["r=1024"]
    with pytest.raises(ValueError, match=r"^r=3073 is above 8 times 384"):
        check_ranks(base, LoraConfig(r=3073))
    check_ranks(base, LoraConfig(r=3072))


@pytest.mark.parametrize("method", ["lora", "dylora", "adapterdrop", "adalora"])
def test_a_recipe_is_checked_whatever_its_method(make: Make, method: str) -> None:
    field = {"adapterdrop": "bottleneck", "adalora": "init_r"}.get(method, "r")
    recipe = make(method, method={field: HUGE})
    model = load_base(recipe, task_type="SEQ_CLS", arguments={})
    with pytest.raises(ValueError, match=rf"^{field}=1000000000 is above 8 times 32"):
        adapt(model, recipe, "SEQ_CLS")


@pytest.mark.parametrize("alpha", [1e308, 10**400, 3.5e38])
def test_an_alpha_that_float32_can_not_hold_is_refused(alpha: Any) -> None:
    given: list[dict[str, Any]] = [{"lora_alpha": alpha}, {"alpha_pattern": {"q_proj": alpha}}]
    for fields in given:
        with pytest.raises(ValueError, match=r"must be positive and at most 3\.4e\+38, the largest of float32"):
            rankwise.HeteroLoraConfig(**Q, **fields)
    with pytest.raises(ValueError, match=r"^shortcut_alpha=.*at most 3\.4e\+38"):
        rankwise.HeteroLoraConfig(shortcuts=["res1"], shortcut_alpha=alpha, **Q)
    with pytest.raises(ValueError, match=r"^inject_alpha=.*at most 3\.4e\+38"):
        rankwise.Lor2cConfig(injections=1, inject_alpha=alpha)
    with pytest.raises(ValueError, match=r"^scale=.*at most 3\.4e\+38"):
        rankwise.rank_plan(tiny_bert(), class_batches(4), budget=400, scale=alpha)


def test_the_largest_alpha_leaves_the_base_as_it_is() -> None:
    """0 times infinity would be no number: with B = 0 the base comes out, or the alpha was too large."""
    largest: Any = 3.4e38
    model = get_peft_model(tiny_llama(), rankwise.HeteroLoraConfig(r=1, lora_alpha=largest, **Q)).eval()
    ids = torch.arange(4, 10)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, tiny_llama()(input_ids=ids).logits)


def test_a_budget_and_components_beyond_the_model_take_what_there_is() -> None:
    """A matrix of 16 x 16 has 16 components: no budget buys more, and no memory is asked for more."""
    batches = class_batches(4, 20)
    whole: dict[str, Any] = {"budget": 10**15, "head_warmup": 0, "target_modules": ["query", "value"]}
    found = rankwise.rank_plan(tiny_bert(), batches, components=10**9, **whole)
    assert max(found.ranks.values()) <= 16
    assert found.unspent == 10**15 - found.spent
    exact = rankwise.rank_plan(tiny_bert(), batches, components=16, **whole)
    assert exact.ranks == found.ranks
