"""A rank plan: what it chooses, what comes out of it, what it refuses, and that it leaves no trace."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.families import FAMILIES
from tests.models import Batch, class_batches, llama_config, logits, text_batches, tiny_bert, tiny_llama, tiny_opt
from tests.processes import in_two_processes
from tests.traces import Broken, assert_same, losses_of_a_user, snapshot
from torch import Tensor, nn
from transformers import LlamaForCausalLM

import rankwise
from rankwise.planning.step_time import StepTime
from rankwise.scores.probe import model_loss

QUIET: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def plan_of(model: Any = None, batches: Any = None, **fields: Any) -> rankwise.RankPlan:
    """Plan for a tiny LLaMA unless told otherwise; few batches tell little, so nothing falls back unless asked."""
    options: dict[str, Any] = {"budget": 500, "least_overlap": 0.0, **fields}
    return rankwise.rank_plan(model or tiny_llama(), batches or text_batches(6, 4), **options)


@pytest.mark.parametrize(
    ("fails_at", "time_limit"), [(None, None), (0, None), (3, None), (12, None), (None, 2.0), (16, 2.0)]
)
@pytest.mark.parametrize("space", ["linear", "all"])
def test_nothing_is_left_behind(space: str, fails_at: int | None, time_limit: float | None) -> None:
    """Whether it fails while the head is trained, in the first pass, in the second, or while a step is timed."""
    model = tiny_bert(**QUIET)
    model.register_buffer("running", torch.zeros(2))
    model.train()
    model.bert.encoder.layer[0].eval()
    model.classifier.bias.requires_grad = False
    model(**class_batches(1)[0]).loss.backward()

    def batches() -> Iterator[Batch]:
        """Batches that are drawn, as a loader that shuffles draws them."""
        for batch in class_batches(6):
            torch.rand(3), random.random(), np.random.random()  # noqa: NPY002
            yield batch

    model.config.problem_type = None  # as before the first loss, which writes it
    before, config = snapshot(model), model.config.to_dict()
    options: dict[str, Any] = {"budget": 300, "space": space, "head_warmup": 2, "time_limit": time_limit}
    if fails_at is None:
        rankwise.rank_plan(model, batches(), **options)
    else:
        with pytest.raises(Broken):
            rankwise.rank_plan(model, batches(), **losses_of_a_user(fails_at), **options)
    assert_same(before, snapshot(model))
    assert model.config.to_dict() == config


@pytest.mark.parametrize("name", ["bert", "llama", "opt-pre", "opt-post", "gemma2"])
@pytest.mark.parametrize("space", ["linear", "all"])
def test_the_config_builds_exactly_the_plan(name: str, space: str, tmp_path: Path) -> None:
    """The ranks, one scale everywhere, the base model's start; and the same again from the saved folder."""
    family = FAMILIES[name]
    data = text_batches(6, 4) if family.causal else class_batches(6)
    plan = plan_of(family(), data, budget=400, space=space)
    assert 0 < plan.spent <= plan.budget
    config = plan.to_config()
    model: Any = get_peft_model(family(), config)
    assert ranks_of(model) == plan.chosen
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == plan.spent
    assert torch.equal(logits(model), logits(family()))
    assert isinstance(config, rankwise.HeteroLoraConfig) == any(kind in plan.chosen for kind in blocks(plan))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".lora_B." in key:
                parameter.normal_(generator=torch.Generator().manual_seed(len(key)))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(family(), tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert ranks_of(again) == plan.chosen


def blocks(plan: rankwise.RankPlan) -> set[str]:
    return set(plan.ranks) - set(plan.modules)


def ranks_of(model: Any) -> dict[str, int]:
    """The rank of every path of a wrapped model by the plan's names; checks that all have one scale."""
    if isinstance(model.peft_config["default"], rankwise.HeteroLoraConfig):
        paths = rankwise.named_paths(model)
        assert {path.scaling for path in paths.values()} == {2.0}
        return {name: path.r for name, path in paths.items()}
    hosts = {name: m for name, m in model.get_base_model().named_modules() if getattr(m, "lora_A", None)}
    assert {host.scaling["default"] for host in hosts.values()} == {2.0}
    from rankwise.wiring.names import path_names

    bare = [n.replace(".base_layer", "") for n, _ in model.get_base_model().named_modules() if ".lora_" not in n]
    names = path_names(hosts, bare)
    return {names[module]: host.r["default"] for module, host in hosts.items()}


@pytest.mark.parametrize("space", ["linear", "all"])
def test_rank_stabilised_scaling_has_the_same_scale_everywhere(space: str) -> None:
    plan = plan_of(budget=3000, space=space, scale=3.0, components=8)
    assert max(plan.chosen.values()) > 1
    model: Any = get_peft_model(tiny_llama(), plan.to_config(use_rslora=True))
    hosts = [m for m in model.modules() if getattr(m, "lora_A", None)]
    assert {round(host.scaling["default"], 9) for host in hosts} == {3.0}


def test_peft_shortens_long_lists_of_names_and_the_same_modules_come_out() -> None:
    model = tiny_llama(6)
    plan = plan_of(model, budget=2500)
    assert len(plan.chosen) > 20
    wrapped: Any = get_peft_model(model, plan.to_lora_config(task_type="CAUSAL_LM"))
    assert ranks_of(wrapped) == plan.chosen


def test_a_list_of_kinds_is_a_space() -> None:
    plan = plan_of(space=["res2", "layer"])
    assert {name.rpartition(".")[2] for name in plan.ranks} == {"res2", "layer"}
    with pytest.raises(ValueError, match=r"plan.to_config\(\), which is a HeteroLoraConfig"):
        plan.to_lora_config()
    assert plan.to_config().target_modules in ([], set())


def test_the_loss_scaled_changes_no_choice() -> None:
    plain = plan_of()
    tripled = plan_of(compute_loss=lambda model, batch: 3 * model_loss(model, batch), reduction="mean")
    assert tripled.ranks == plain.ranks
    assert tripled.gain == pytest.approx(9 * plain.gain, rel=1e-3)


def test_a_sum_over_terms_is_stated_and_plans_as_the_mean() -> None:
    def summed(model: nn.Module, batch: Batch) -> Tensor:
        return model_loss(model, batch) * 20  # four rows of five predicted tokens

    with pytest.raises(ValueError, match="If it is a sum over terms, say reduction='sum'"):
        plan_of(compute_loss=summed)
    assert plan_of(compute_loss=summed, reduction="sum").gain == pytest.approx(plan_of().gain, rel=1e-4)


def test_micro_batches_plan_the_same() -> None:
    data = text_batches(6, 4)
    parts = [{key: value[part : part + 2] for key, value in batch.items()} for batch in data for part in (0, 2)]
    whole, pieces = plan_of(batches=data, halves=False), plan_of(batches=parts, halves=False)
    assert pieces.ranks == whole.ranks
    assert pieces.gain == pytest.approx(whole.gain, rel=1e-4)


def share_of_plan(share: slice) -> dict[str, Any]:
    data = [{key: value[share] for key, value in batch.items()} for batch in class_batches(6)]
    plan = rankwise.rank_plan(
        tiny_bert(**QUIET), data, budget=400, space="all", least_overlap=0.0, components=4, head_warmup=3
    )
    return {"ranks": plan.ranks, "gain": plan.gain, "overlap": plan.overlap}


@pytest.mark.distributed
def test_two_processes_make_the_plan_of_one(tmp_path: Path) -> None:
    first, second = in_two_processes(share_of_plan, tmp_path)
    assert first == second
    alone = share_of_plan(slice(0, 4))
    assert first["ranks"] == alone["ranks"]
    assert first["gain"] == pytest.approx(alone["gain"], rel=1e-3)


def uneven_plan(share: slice) -> dict[str, Any]:
    """What a process plans that has a batch less than the other, and what it is told when it has one only."""
    mine = [{key: value[share] for key, value in batch.items()} for batch in class_batches(6 - (share.start > 0))]
    plan = rankwise.rank_plan(tiny_bert(**QUIET), mine, budget=400, components=4)
    try:
        rankwise.rank_plan(tiny_bert(**QUIET), mine[: 2 - (share.start > 0)], budget=400, components=1)
    except ValueError as error:
        return {"ranks": plan.ranks, "loss": plan.loss, "gain": plan.gain, "kept": plan.kept, "told": str(error)}
    return {}


@pytest.mark.distributed
def test_two_processes_with_uneven_batches_make_one_plan_and_refuse_together(tmp_path: Path) -> None:
    first, second = in_two_processes(uneven_plan, tmp_path)
    assert first == second
    assert "need at least 2 batches, got 1 in one of the processes: give more, or halves=False" in first["told"]


def test_cross_validation_takes_the_value_from_directions_that_are_noise() -> None:
    """Labels drawn at random: what one half says does not hold on the other."""
    generator = torch.Generator().manual_seed(1)
    data = [{**batch, "labels": torch.randint(0, 2, (4,), generator=generator)} for batch in class_batches(8)]
    plain, checked = (plan_of(tiny_bert(**QUIET), data, cross_validate=on, head_warmup=0) for on in (False, True))
    assert checked.gain < plain.gain
    assert checked.overlap is not None
    once = plan_of(tiny_bert(**QUIET), data, cross_validate=True, halves=False, head_warmup=0)
    assert once.ranks == checked.ranks


def test_a_base_in_low_precision_is_planned() -> None:
    model: Any = tiny_llama()
    plan = plan_of(model.to(torch.bfloat16))
    assert plan.spent > 400
    assert all(math.isfinite(pick.gain) for pick in plan.picks)


def test_opt_whose_tokens_are_flattened_inside_is_planned() -> None:
    plan = plan_of(tiny_opt(dropout=0.0, attention_dropout=0.0), space="all")
    assert any("fc1" in name for name in plan.ranks)


def hollow() -> Any:
    with torch.device("meta"):
        return LlamaForCausalLM(llama_config())


def masked(*places: int) -> list[Batch]:
    """Four batches, of which no label counts in some."""
    batches = text_batches(4, 4)
    for place in places:
        batches[place]["labels"] = torch.full_like(batches[place]["labels"], -100)
    return batches


def test_a_batch_in_which_no_label_counts_is_passed_over() -> None:
    plan = plan_of(batches=masked(1), components=4)
    assert plan.loss == pytest.approx(plan_of(batches=[b for i, b in enumerate(masked()) if i != 1], components=4).loss)
    assert all(math.isfinite(pick.gain) for pick in plan.picks)


def test_a_budget_that_numpy_summed_is_a_number() -> None:
    assert plan_of(budget=np.int64(500)).ranks == plan_of(budget=500).ranks


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan_of(budget=0.5), "budget=0.5 must be a number of parameters"),
        (lambda: plan_of(batches=[{"input_ids": b["input_ids"]} for b in text_batches(4)]), "add labels"),
        (lambda: plan_of(time_limit=0.0), "time_limit=0.0 must be a positive share"),
        (lambda: plan_of(time_limit=0.01), r"time_limit=0.01 is below the quickest step, which takes 0\.\d+ of that"),
        (lambda: plan_of(prefix_cache=True), "prefix_cache= belongs to a time limit"),
        (lambda: plan_of(time_limit=1.0, step_time=StepTime(1.0, (), (), (), {}, {}, {}, {})), "other paths"),
        (
            lambda: plan_of(batches=text_batches(4, 1)),
            "2 examples in a half of the batches can't tell 8 components of a path apart",
        ),
        (lambda: plan_of(scale=0), "scale=0 must be positive"),
        (lambda: plan_of(scale="2"), "scale='2' must be positive"),
        (lambda: plan_of(breadth="some"), "breadth='some' must be a float"),
        (lambda: plan_of("gpt2"), "model='gpt2' is a str and no torch module"),
        (lambda: rankwise.rank_plan(tiny_llama(), 3, budget=500), "batches=3 must be training batches"),  # type: ignore[arg-type]
        (lambda: plan_of(hollow()), "LlamaForCausalLM is on the meta device, so it has no weights to compute with"),
        (lambda: plan_of(batches=masked(0, 1, 2, 3)), "no label counts in the batches: each is -100"),
        (lambda: plan_of(batches=masked(1, 3)), "no label counts in one half of the batches"),
    ],
)
def test_bad_input_gets_an_error_that_says_what_to_change(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
