"""A path that is off is not in the graph; one that is on is PEFT's own sum."""

from __future__ import annotations

import pytest
import torch
from tests.models import TRIO, class_batches, fill_, half_on_, keep_only_, logits, one_of_trio

import rankwise
from rankwise.paths.path_set import path_set


@pytest.mark.parametrize("family", TRIO)
def test_a_path_that_is_off_is_not_there(family: str) -> None:
    """Against PEFT itself: zeroing B of the paths that are off gives the same logits, to the bit."""
    model, twin = one_of_trio(family), one_of_trio(family)
    for each in (model, twin):
        fill_(each)
    half_on_(model)
    with torch.no_grad():
        for name, path in rankwise.named_paths(twin).items():
            if not rankwise.named_paths(model)[name].enabled:
                path.lora_B.zero_()
    assert torch.equal(logits(model), logits(twin))
    keep_only_(model)
    assert torch.equal(logits(model), logits(TRIO[family][0]()))


def test_gradients_equal_those_of_peft() -> None:
    model = one_of_trio("bert")
    fill_(model)
    half_on_(model)
    (batch,) = class_batches(1)
    model(**batch).loss.backward()
    for path in rankwise.named_paths(model).values():
        assert (path.lora_A.grad is not None) == path.enabled
        assert (path.lora_B.grad is not None) == path.enabled
        assert path.lora_A.requires_grad


@pytest.mark.parametrize("family", TRIO)
def test_merging_merges_what_contributes(family: str) -> None:
    model = one_of_trio(family)
    fill_(model)
    half_on_(model)
    expected = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), expected)
    merged = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(logits(merged), expected)
    assert "rankwise_paths" not in merged.__dict__
    assert not merged._forward_pre_hooks


def test_a_frozen_path_contributes_without_training() -> None:
    model = one_of_trio("bert", on_disable="freeze")
    fill_(model)
    expected = logits(model)
    half_on_(model)
    assert torch.equal(logits(model), expected)
    (batch,) = class_batches(1)
    model(**batch).loss.backward()
    for path in rankwise.named_paths(model).values():
        assert path.contributing
        assert (path.lora_B.grad is not None) == path.enabled
    counts = path_set(model).counts()
    assert counts["frozen"] == counts["contributing"] - counts["enabled"] > 0
