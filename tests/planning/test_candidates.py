"""The candidates of a plain base model: which kinds a space names, and what is on the model while they are."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.families import FAMILIES
from tests.models import logits, tiny_bert, tiny_llama
from tests.planning.test_ranks import plan_of
from tests.traces import assert_same, snapshot
from torch import nn

import rankwise
from rankwise.method.targets import all_linear
from rankwise.planning.candidates import kinds_of, with_candidates

ALL = ["linear", "res1", "res2", "in", "cut", "layer"]
WITHOUT_IN = [kind for kind in ALL if kind != "in"]  # in front of a norm, in and layer are one path


@pytest.mark.parametrize(
    ("name", "blocks", "expected"),
    [
        ("bert", 2, ALL),
        ("opt-post", 2, ALL),
        ("llama", 2, WITHOUT_IN),
        ("gemma2", 2, WITHOUT_IN),
        ("bert", 1, [kind for kind in ALL if kind != "cut"]),  # which comes from the block before
        ("llama", 1, [kind for kind in WITHOUT_IN if kind != "cut"]),
    ],
)
def test_all_is_every_kind_that_the_family_can_have(name: str, blocks: int, expected: list[str]) -> None:
    assert kinds_of(FAMILIES[name](blocks), "all") == expected


def test_a_list_is_taken_as_it_is_and_linear_needs_no_family() -> None:
    assert kinds_of(nn.Linear(1, 1), "linear") == ["linear"]
    given = ("layer", "linear", "in")
    assert kinds_of(nn.Linear(1, 1), given) == list(given)
    with pytest.raises(ValueError, match=r"Linear has no config\.model_type to look it up by"):
        kinds_of(nn.Linear(1, 1), "all")


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ("linaer", "space='linaer' is not one of 'linear', 'all', did you mean 'linear'"),
        ("layer", "space='layer' is not one of 'linear', 'all'"),
        (["res3"], "space='res3' is not one of 'linear', 'res1', 'res2', 'in', 'cut', 'layer'"),
        ([], r"space=\[\] leaves nothing to plan: use 'linear', 'all', or a list such as"),
    ],
)
def test_a_space_that_names_nothing_is_corrected(space: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kinds_of(tiny_bert(), space)


def used() -> Any:
    """A model in training whose user has frozen a part of it."""
    model = tiny_bert().train()
    model.bert.embeddings.requires_grad_(False)
    model.classifier.bias.requires_grad_(False)
    return model


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("space", ["linear", "all", ["layer"]])
def test_they_are_on_the_model_inside_and_change_nothing(space: Any, fails: bool) -> None:
    model = used()
    before, expected = snapshot(model), logits(tiny_bert())
    with (
        pytest.raises(RuntimeError) if fails else nullcontext(),
        with_candidates(model, space, None, seed=0) as wrapped,
    ):
        paths = rankwise.named_paths(wrapped)
        assert {path.kind for path in paths.values()} == set(kinds_of(model, space))
        assert {(path.r, path.scaling) for path in paths.values()} == {(1, 1.0)}
        assert not any(bool(path.lora_B.any()) for path in paths.values())
        assert all(path.enabled for path in paths.values())
        assert torch.equal(logits(wrapped), expected)
        wrapped.train()
        model.bert.encoder.layer[0].requires_grad_(True)
        if fails:
            raise RuntimeError
    assert_same(before, snapshot(model))


def test_a_refusal_leaves_the_model_as_found() -> None:
    model = used()
    before = snapshot(model)
    wrong = with_candidates(model, "linear", ["quary"], seed=0)
    with pytest.raises(ValueError, match="names 'quary', which matches no module"), wrong:
        raise AssertionError("nothing was built")
    assert_same(before, snapshot(model))


def test_the_seed_decides_where_they_start() -> None:
    def starts(seed: int) -> list[Any]:
        with with_candidates(tiny_llama(), "all", ["q_proj"], seed=seed) as wrapped:
            return [path.lora_A.detach().clone() for path in rankwise.named_paths(wrapped).values()]

    first, again, other = starts(0), starts(0), starts(1)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not any(torch.equal(one, two) for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_linear_candidates_are_all_projections_but_the_head(targets: Any) -> None:
    model = tiny_llama()
    with with_candidates(model, "linear", targets, seed=0) as wrapped:
        found = {path.module for path in rankwise.named_paths(wrapped).values()}
    linear = {name for name, module in tiny_llama().named_modules() if isinstance(module, nn.Linear)}
    assert found == linear - {"lm_head"} == set(all_linear(model))


def test_named_targets_are_the_linear_candidates() -> None:
    named = plan_of(target_modules=["q_proj", "v_proj"])
    assert {name.rpartition(".")[2] for name in named.ranks} == {"q_proj", "v_proj"}


class HeadOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("model", "targets", "words"),
    [
        (HeadOnly(), None, "and HeadOnly has no linear layer outside its head: name some with target_modules="),
        (
            tiny_bert(),
            [],
            r"has linear paths, and target_modules=\[\] names none: name some .* or plan for block paths",
        ),
        (
            get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"])),
            None,
            r"give the model without it, or score the adapter's own paths with rankwise\.score_paths",
        ),
    ],
    ids=["head", "nothing", "adapter"],
)
def test_a_model_without_candidates_is_told(model: nn.Module, targets: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words), with_candidates(model, "linear", targets, seed=0):
        raise AssertionError("nothing was built")


def test_a_checkpointed_model_has_no_more_hooks_afterwards() -> None:
    model: Any = tiny_bert(1)
    model.gradient_checkpointing_enable()
    before = [len(module._forward_hooks) for module in model.modules()], sorted(model.__dict__)
    for _ in range(2):
        with with_candidates(model, "linear", None, seed=0):
            pass
    assert ([len(module._forward_hooks) for module in model.modules()], sorted(model.__dict__)) == before


def test_a_plan_for_plain_lora_leaves_out_what_peft_takes_for_experts(caplog: pytest.LogCaptureFixture) -> None:
    """Named in full, PEFT put LoRA on all experts in place of the dense MLP, beyond the budget."""
    family = FAMILIES["qwen3-moe"]
    plan = plan_of(family(2), budget=1000, components=12)
    assert {module.rpartition(".")[2] for module in plan.modules.values()} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert plan.converted == ()
    model: Any = get_peft_model(family(2), plan.to_lora_config())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == plan.spent
    (note,) = [each for each in plan.warnings if "experts" in each]
    assert note.startswith("PEFT takes model.layers.1.mlp.down_proj")
    assert "so they are no candidates of a plan for plain LoRA" in note
    assert note in caplog.messages


@pytest.mark.parametrize(
    "fields", [{"target_modules": ["gate_proj", "up_proj", "v_proj"]}, {"space": ["linear", "res1"]}]
)
def test_a_plan_that_was_asked_for_them_is_built_by_our_config(fields: dict[str, Any]) -> None:
    family = FAMILIES["qwen3-moe"]
    plan = plan_of(family(2), budget=2000, components=12, **fields)
    assert len(plan.beyond_plain) > 1
    assert any("a plan with ranks there is built with plan.to_config()" in each for each in plan.warnings)
    config = plan.to_config()
    assert isinstance(config, rankwise.HeteroLoraConfig)
    model: Any = get_peft_model(family(2), config)
    assert {name: path.r for name, path in rankwise.named_paths(model).items()} == plan.chosen
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == plan.spent
    if not plan.has_block_paths:
        with pytest.raises(ValueError, match=r"PEFT takes model.layers.1.mlp.*experts.*: use plan.to_config\(\)"):
            plan.to_lora_config()
    assert rankwise.RankPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize("name", ["qwen2-moe", "mixtral"])
def test_families_whose_names_peft_leaves_alone_have_all_projections(name: str) -> None:
    plan = plan_of(FAMILIES[name](2), budget=300)
    assert set(plan.modules.values()) == set(all_linear(FAMILIES[name](2)))
    assert not any("experts" in note for note in plan.warnings)
