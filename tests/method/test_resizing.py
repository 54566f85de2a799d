from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import get_peft_model
from tests.models import adapted, fill_, logits, tiny_bert, tiny_llama

import rankwise
from rankwise.method.resizing import resize_
from rankwise.paths.path_set import path_set

FIELDS: dict[str, Any] = {"mode": "static", "granularity": "rank", "r": 8, "lora_alpha": 16, "budget": 0.25}


def ranked(base: Any, targets: list[str], **fields: Any) -> Any:
    """An adapter with every third path out and the others at ranks 1 to 3."""
    model = adapted(base, target_modules=targets, **{**FIELDS, **fields})
    names = list(path_set(model).paths)
    resize_(path_set(model), {name: (1, 0, 3, 2)[place % 4] for place, name in enumerate(names)})
    return model


@pytest.mark.parametrize("shortcuts", [[], ["res1", "cut", "layer"]])
@pytest.mark.parametrize("rslora", [False, True])
def test_it_equals_what_the_new_config_builds(shortcuts: list[str], rslora: bool) -> None:
    model = ranked(tiny_bert(), ["query", "value"], shortcuts=shortcuts, use_rslora=rslora, seed=3)
    config = copy.deepcopy(model.peft_config["default"])
    assert (config.mode, config.granularity) == ("off", "rank")
    fresh = get_peft_model(tiny_bert(), config)
    ours, theirs = rankwise.named_paths(model), rankwise.named_paths(fresh)
    assert list(ours) == list(theirs)
    for name, path in ours.items():
        assert path.enabled
        assert torch.equal(path.lora_A, theirs[name].lora_A)
        assert torch.equal(path.lora_B, theirs[name].lora_B)
        assert path.scaling == pytest.approx(theirs[name].scaling) == pytest.approx(path_scale(name, rslora))
    fill_(model, seed=1)
    fill_(fresh, seed=1)
    assert torch.equal(logits(model), logits(fresh))


def path_scale(name: str, rslora: bool) -> float:
    scale = 16 / (8**0.5 if rslora else 8)
    return scale if name.endswith(("query", "value")) else scale / 4


def test_what_has_no_rank_is_gone() -> None:
    model = ranked(tiny_llama(), ["q_proj", "v_proj"])
    kept = sum(path.num_parameters for path in rankwise.named_paths(model).values())
    assert kept == sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)
    assert rankwise.plan(model).resident == kept


def test_until_ranks_are_chosen_every_candidate_is_off_at_rank_one() -> None:
    model = adapted(tiny_llama(), target_modules=["q_proj", "v_proj"], **FIELDS)
    paths = rankwise.named_paths(model).values()
    assert {path.r for path in paths} == {1}
    assert {path.scaling for path in paths} == {2.0}
    assert not any(path.enabled for path in paths)
