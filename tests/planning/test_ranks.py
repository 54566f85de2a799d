"""A rank plan: what it chooses, what comes out of it, what it refuses, and that it leaves no trace."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.families import FAMILIES
from tests.models import Batch, class_batches, logits, text_batches, tiny_bert, tiny_llama, tiny_opt
from tests.processes import in_two_processes
from tests.traces import assert_same, snapshot
from torch import Tensor, nn

import rankwise
from rankwise.method.targets import all_linear
from rankwise.planning.choosing import overlap_of
from rankwise.planning.step_time import StepTime
from rankwise.rules.joint import choose_jointly, curvature_of
from rankwise.scores.probe import model_loss

QUIET: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def plan_of(model: Any = None, batches: Any = None, **fields: Any) -> rankwise.RankPlan:
    """Plan for a tiny LLaMA unless told otherwise; few batches tell little, so nothing falls back unless asked."""
    options: dict[str, Any] = {"budget": 500, "least_overlap": 0.0, **fields}
    return rankwise.rank_plan(model or tiny_llama(), batches or text_batches(6, 4), **options)


def bert_plan(**fields: Any) -> rankwise.RankPlan:
    return plan_of(tiny_bert(**QUIET), class_batches(6), **fields)


class Broken(RuntimeError):
    """The user's own error."""


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
    calls = iter(range(100))

    def touching(model: nn.Module, batch: Batch) -> Tensor:
        torch.rand(3), random.random(), np.random.random()  # noqa: NPY002
        if next(calls) == fails_at:
            raise Broken
        return model_loss(model, batch)

    def drawing(model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, int]:
        if next(calls) == fails_at:
            raise Broken
        found = nn.functional.cross_entropy(model(**batch).logits, batch["labels"], reduction="none")
        return found, len(found)

    def batches() -> Iterator[Batch]:
        yield from class_batches(6)

    before = snapshot(model)
    options: dict[str, Any] = {"budget": 300, "space": space, "head_warmup": 2, "time_limit": time_limit}
    if fails_at is None:
        rankwise.rank_plan(model, batches(), **options)
    else:
        with pytest.raises(Broken):
            rankwise.rank_plan(model, batches(), compute_loss=touching, draw_losses=drawing, **options)
    assert_same(before, snapshot(model))


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


def test_the_plan_is_the_joint_choice_of_what_the_passes_found(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def spying(lin: Any, curvature: Any, costs: Any, budget: int, **fields: Any) -> Any:
        seen.append((lin, costs, budget, fields, choose_jointly(lin, curvature, costs, budget, **fields)))
        return seen[-1][-1]

    monkeypatch.setattr("rankwise.planning.choosing.choose_jointly", spying)
    plan = plan_of(halves=False)
    ((lin, costs, budget, fields, picks),) = seen
    names = list(plan.ranks)
    assert [pick.path for pick in plan.picks] == [names[fields["owners"][j]] for j in picks.order]
    assert budget == plan.budget
    assert costs == [plan.costs[names[owner]] for owner in fields["owners"]]
    assert plan.curve()[-1][0] == plan.spent
    assert plan.curve()[-1][1] == pytest.approx(plan.gain)
    assert plan.parameters_for(1.0) <= plan.spent
    half = plan.parameters_for(0.5)
    assert next(gain for cost, gain in plan.curve() if cost == half) >= plan.gain / 2
    assert len(lin) == sum(min(8, *sizes) for sizes in shapes(plan))


def shapes(plan: rankwise.RankPlan) -> list[tuple[int, int]]:
    model: Any = tiny_llama()
    return [tuple(model.get_submodule(module).weight.shape) for module in plan.modules.values()]


def test_linear_candidates_are_all_projections_but_the_head() -> None:
    assert not [name for name in all_linear(tiny_llama()) if "lm_head" in name]
    assert not [name for name in all_linear(FAMILIES["roberta"]()) if name.startswith("classifier")]
    assert set(plan_of().modules.values()) == set(all_linear(tiny_llama()))
    named = plan_of(target_modules=["q_proj", "v_proj"])
    assert {name.rpartition(".")[2] for name in named.ranks} == {"q_proj", "v_proj"}


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


def test_breadth_is_the_uniform_plan_exactly() -> None:
    whole = sum(plan_of().costs.values())
    assert set(plan_of(budget=2 * whole, breadth=1.0).ranks.values()) == {2}
    assert len(set(plan_of(budget=2 * whole).ranks.values())) > 1


def test_halves_that_disagree_give_the_uniform_plan_and_say_so() -> None:
    whole = sum(plan_of().costs.values())
    with pytest.warns(UserWarning, match="the data can't tell the paths apart"):
        plan = plan_of(budget=whole, least_overlap=1.0)
    assert plan.overlap is not None
    assert plan.overlap < 1.0
    assert set(plan.ranks.values()) == {1}
    assert plan.breadth == 1.0
    assert len(plan.warnings) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        off = plan_of(budget=whole, least_overlap=1.0, halves=False)
    assert off.overlap is None
    assert off.kept is None
    assert off.breadth == 0.0


def test_halves_of_the_same_batches_agree_wholly() -> None:
    twice = [batch for batch in text_batches(3, 8) for _ in range(2)]
    plan = plan_of(batches=twice)
    assert plan.overlap == 1.0
    assert plan.kept == pytest.approx(1.0)


def test_overlap_is_the_shared_share_of_the_cost() -> None:
    costs = {"a": 10, "b": 30}
    assert overlap_of({"a": 3, "b": 0}, {"a": 0, "b": 1}, costs) == 0.0
    assert overlap_of({"a": 1, "b": 1}, {"a": 4, "b": 0}, costs) == pytest.approx(10 / 40)
    assert overlap_of({"a": 2, "b": 1}, {"a": 2, "b": 1}, costs) == 1.0


def test_cross_validation_takes_the_value_from_directions_that_are_noise() -> None:
    """Labels drawn at random: what one half says does not hold on the other."""
    generator = torch.Generator().manual_seed(1)
    data = [{**batch, "labels": torch.randint(0, 2, (4,), generator=generator)} for batch in class_batches(8)]
    plain, checked = (plan_of(tiny_bert(**QUIET), data, cross_validate=on, head_warmup=0) for on in (False, True))
    assert checked.gain < plain.gain
    assert checked.overlap is not None
    once = plan_of(tiny_bert(**QUIET), data, cross_validate=True, halves=False, head_warmup=0)
    assert once.ranks == checked.ranks


def test_the_head_is_trained_first_and_put_back_unless_it_is_kept() -> None:
    model: Any = tiny_bert(**QUIET)
    data = class_batches(6)
    before = model.classifier.weight.clone()
    untrained = plan_of(model, data, head_warmup=0)
    trained = plan_of(model, data, head_warmup=30)
    assert trained.loss < untrained.loss
    assert torch.equal(model.classifier.weight, before)
    assert plan_of(model, data).loss < untrained.loss  # the default
    body = model.bert.encoder.layer[0].output.dense.weight.clone()
    plan_of(model, data, head_warmup=30, keep_head=True)
    assert not torch.equal(model.classifier.weight, before)
    assert torch.equal(model.bert.encoder.layer[0].output.dense.weight, body)
    with pytest.raises(ValueError, match="LlamaForCausalLM has none under a usual name"):
        plan_of(head_warmup=3)


def test_a_plan_says_what_it_leaves_unspent_and_why() -> None:
    plan = plan_of(budget=430)
    assert plan.unspent == 430 - plan.spent
    assert bool(plan.unspent) == bool(plan.unspent_because)
    if plan.unspent:
        assert plan.unspent < min(plan.costs.values())
    everything = plan_of(budget=10**6, components=2)
    assert set(everything.ranks.values()) == {2}
    assert "all 28 components" in everything.unspent_because


def test_a_base_in_low_precision_is_planned() -> None:
    model: Any = tiny_llama()
    plan = plan_of(model.to(torch.bfloat16))
    assert plan.spent > 400
    assert all(math.isfinite(pick.gain) for pick in plan.picks)


def test_opt_whose_tokens_are_flattened_inside_is_planned() -> None:
    plan = plan_of(tiny_opt(dropout=0.0, attention_dropout=0.0), space="all")
    assert any("fc1" in name for name in plan.ranks)


def test_plan_lora_by_rank_is_a_rank_plan() -> None:
    plan = plan_of(budget=500)
    config = rankwise.plan_lora(
        tiny_llama(), text_batches(6, 4), budget=500, granularity="rank", lora_dropout=0.1, task_type="CAUSAL_LM"
    )
    assert type(config) is LoraConfig
    assert config.lora_dropout == 0.1
    expected = plan.to_lora_config()
    assert (config.target_modules, config.rank_pattern) == (expected.target_modules, expected.rank_pattern)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan_of(budget=5), r"budget=5 is below the cheapest component: one rank of \S+ costs 24 parameters"),
        (lambda: plan_of(budget=0.5), "budget=0.5 must be a number of parameters"),
        (lambda: plan_of(space="linaer"), "did you mean 'linear'"),
        (lambda: plan_of(space=["res3"]), "space='res3' is not one of"),
        (lambda: plan_of(space=[]), r"space=\[\] leaves nothing to plan"),
        (lambda: plan_of(target_modules=["quary"]), "matches no module"),
        (lambda: plan_of(batches=[{"input_ids": b["input_ids"]} for b in text_batches(4)]), "add labels"),
        (lambda: plan_of(batches=text_batches(1)), "need at least 2 batches, got 1"),
        (lambda: plan_of(batches=text_batches(4, 1)), "4 examples can't tell 8 components of a path apart"),
        (lambda: plan_of(directions="lion"), "directions='lion' is not one of 'adam', 'sgd'"),
        (lambda: plan_of(reduction="avg"), "reduction='avg'"),
        (lambda: plan_of(scale=0), "scale=0 must be positive"),
        (lambda: plan_of(components=0), "components=0 must be a whole number"),
        (lambda: plan_of(least_overlap=2), r"least_overlap=2 must lie in \[0, 1\]"),
        (lambda: plan_of(breadth=2.0), r"breadth=2.0 must lie in \[0, 1\]"),
        (lambda: plan_of(damping=0.0), "damping=0.0 must be positive"),
        (lambda: plan_of(time_limit=0.0), "time_limit=0.0 must be a positive share"),
        (lambda: plan_of(time_limit=0.01), r"time_limit=0.01 is below the quickest step, which takes 0\.\d+ of that"),
        (lambda: plan_of(prefix_cache=True), "prefix_cache= belongs to a time limit"),
        (lambda: plan_of(time_limit=1.0, step_time=StepTime(1.0, (), (), (), {}, {}, {}, {})), "other paths"),
        (lambda: bert_plan(head_warmup=-1), "head_warmup=-1 must be a whole number of steps"),
        (
            lambda: plan_of(get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"]))),
            "give the model without it",
        ),
    ],
)
def test_bad_input_gets_an_error_that_says_what_to_change(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_no_batches_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs training batches, got none"):
        rankwise.rank_plan(tiny_llama(), [], budget=400)


def test_curvature_is_formed_whole_or_not_by_size() -> None:
    small, large = (curvature_of(np.ones((3, size)), 3) for size in (10, 2_001))
    assert (type(small).__name__, type(large).__name__) == ("DenseCurvature", "ExampleCurvature")
