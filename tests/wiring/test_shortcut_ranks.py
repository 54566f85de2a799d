"""A rank of its own for each shortcut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.models import adapted, class_batches, fill_, logits, tiny_bert

import rankwise

RANKS = {"layers.0.res1": 3, "layers.1.res2": 1}


def made(**fields: Any) -> PeftModel:
    options: dict[str, Any] = {"shortcuts": ["res1", "res2"], "shortcut_ranks": RANKS, "target_modules": [], **fields}
    return adapted(tiny_bert(), shortcut_r=2, shortcut_alpha=3.0, **options)


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_named_shortcuts_alone_are_built_at_one_scale(rank_stabilised: bool) -> None:
    paths = rankwise.named_paths(made(use_rslora=rank_stabilised))
    assert {name: path.r for name, path in paths.items()} == RANKS
    scale = 3.0 / 2**0.5 if rank_stabilised else 1.5
    assert [path.scaling for path in paths.values()] == pytest.approx([scale, scale])
    assert [path.num_parameters for path in paths.values()] == [3 * 32, 32]


def test_they_train_and_come_back(tmp_path: Path) -> None:
    model = made()
    fill_(model)
    model(**class_batches(1)[0]).loss.backward()
    assert all(path.lora_A.grad is not None for path in rankwise.named_paths(model).values())
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(tiny_bert(), tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert {name: path.r for name, path in rankwise.named_paths(again).items()} == RANKS


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shortcut_ranks": {"layers.0.res1": 0}}, r"shortcut_ranks\['layers.0.res1'\]=0 must be a whole number"),
        ({"shortcut_ranks": {"layers.0.layer": 1}}, "whose kind is none of shortcuts"),
        ({"shortcut_ranks": {"layers.7.res1": 1}}, "names 'layers.7.res1', which this model has no block path for"),
        ({"shortcut_ranks": RANKS, "rank_budget": 900}, "nor can shortcut_ranks"),
        ({"shortcut_ranks": {}}, "leaves no path"),
    ],
)
def test_what_can_not_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**fields)
