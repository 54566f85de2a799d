"""Costs, budgets, searches and their records where block paths are candidates beside linear ones."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.families import FAMILIES
from tests.models import Batch, adapted, fill_, keep_only_, tiny_llama, tokens
from torch import Tensor
from torch.optim import Optimizer
from transformers import AutoModelForSequenceClassification, OPTConfig

import rankwise
from rankwise.paths.path_set import path_set
from rankwise.rules.kinds import is_shortcut
from rankwise.rules.policy import Policy
from rankwise.rules.records import from_lines, to_lines

ALL = ["res1", "res2", "in", "cut"]
OPT_350M = OPTConfig(
    num_hidden_layers=24,
    hidden_size=1024,
    word_embed_proj_dim=512,
    do_layer_norm_before=False,
    ffn_dim=4096,
    num_attention_heads=16,
)
Weights = dict[str, Tensor]


# Costs and budgets at their real size, without memory.


def hollow(**fields: Any) -> dict[str, rankwise.LowRankPath]:
    """Return the paths of OPT-350M on the meta device."""
    with torch.device("meta"):
        base = AutoModelForSequenceClassification.from_config(copy.deepcopy(OPT_350M))
    return rankwise.named_paths(get_peft_model(base, paper(**fields), low_cpu_mem_usage=True))


def paper(**fields: Any) -> rankwise.HeteroLoraConfig:
    options = {"target_modules": ["q_proj", "v_proj"], "shortcuts": ALL, "r": 8, "lora_alpha": 16, **fields}
    options.setdefault("mode", "dynamic")
    return rankwise.HeteroLoraConfig(task_type="SEQ_CLS", **options)


def test_the_candidates_of_the_paper() -> None:
    plan = rankwise.plan(OPT_350M, paper(budget=0.25, budget_unit="paths"))
    assert plan.candidates == 143
    assert plan.resident == 143 * 16_384
    assert (plan.budget, plan.budget_unit, plan.enabled) == (36, "paths", 36 * 16_384)
    assert plan.head == 2 * 512  # OPT's classifier has no bias
    assert plan.flops_per_token == 2 * 36 * 16_384
    assert plan.window_bytes == 4 * 143 * 1024 * 16  # exact sums would take 600 MB, so they are sketched
    assert rankwise.plan(OPT_350M, paper(sketch=None)).window_bytes == 4 * 143 * 1024 * 1024


@pytest.mark.parametrize("seed", range(3))
def test_the_choice_of_the_paper(seed: int) -> None:
    combined = hollow(budget=0.25, budget_unit="paths", seed=seed)
    assert sum(path.enabled for path in combined.values()) == 36
    separated = hollow(budget=0.25, budget_unit="paths", allocation="separated", seed=seed)
    on = [name for name, path in separated.items() if path.enabled]
    assert sum(is_shortcut(name) for name in on) == 24
    assert len(on) == 12 + 24
    by_parameters = hollow(budget=0.25, seed=seed)  # 35.75 paths' worth
    assert sum(path.enabled for path in by_parameters.values()) == 35


# The exact choice where costs differ.


def costly(**fields: Any) -> Any:
    """Adapt a LLaMA with grouped queries and feed-forward targets: four costs."""
    options = {"shortcuts": ALL, "shortcut_r": 3, "target_modules": ["q_proj", "v_proj", "down_proj"], **fields}
    model = adapted(tiny_llama(), **options)
    fill_(model)
    return model


def test_paths_cost_what_they_have() -> None:
    costs = {name: path.num_parameters for name, path in rankwise.named_paths(costly()).items()}
    per_block = {"q_proj": 2 * (16 + 16), "v_proj": 2 * (16 + 8), "down_proj": 2 * (24 + 16), "cut": 3 * (16 + 16)}
    per_block |= dict.fromkeys(("res1", "res2", "in"), 3 * (16 + 16))
    assert costs == {
        f"layers.{block}.{name}": cost
        for block in range(2)
        for name, cost in per_block.items()
        if (block, name) != (0, "cut")
    }


def by_rank(scores: dict[str, float], costs: dict[str, int], budget: int, *, per_parameter: bool) -> float:
    """What the greedy choice is worth: the best that still fits, again and again."""
    worth = 0.0
    for name in sorted(scores, key=lambda n: -scores[n] / (costs[n] if per_parameter else 1)):
        if costs[name] <= budget:
            budget -= costs[name]
            worth += scores[name]
    return worth


def every_subset(costs: dict[str, int], scores: dict[str, float]) -> list[tuple[int, float]]:
    """Return cost and worth of all subsets."""
    found = []
    for chosen in itertools.product((False, True), repeat=len(costs)):
        names = list(itertools.compress(costs, chosen))
        found.append((sum(costs[n] for n in names), sum(scores[n] for n in names)))
    return found


@pytest.mark.parametrize("proxy", ["grad_norm", "snip"])
def test_the_choice_is_exact_and_greed_is_not(proxy: str) -> None:
    model = costly()
    scores = rankwise.score_paths(model, text(3), proxy=proxy)
    costs = path_set(model).costs()
    assert len(costs) == 13
    assert len(set(costs.values())) == 4
    subsets, beaten = every_subset(costs, scores), {True: 0, False: 0}
    for budget in range(0, sum(costs.values()) + 17, 16):
        chosen = Policy(proxy, 0, budget, "parameters", "combined", 0).choose(scores, costs, 0)
        assert chosen is not None
        assert sum(costs[name] for name in chosen) <= budget
        worth = sum(scores[name] for name in chosen)
        assert worth == pytest.approx(max(value for cost, value in subsets if cost <= budget), rel=1e-12)
        for per_parameter in beaten:
            beaten[per_parameter] += worth > by_rank(scores, costs, budget, per_parameter=per_parameter) * (1 + 1e-9)
    assert min(beaten.values()) > 0, "greed was never beaten, so the test shows nothing"


def test_two_cheap_paths_are_taken_for_one_that_scores_higher() -> None:
    """A shortcut of 96 parameters scores highest, two value projections of 48 are together worth more."""
    model = costly(budget=96, mode="static", proxy="snip", score_on="factors", score_batches=2)
    paths = rankwise.named_paths(model)
    with torch.no_grad():
        for path in paths.values():
            path.lora_B.mul_(1e-4)  # so small that a path's score is proportional to its B
        scores = rankwise.score_paths(model, text(2), proxy="snip", score_on="factors")
        wanted = {"layers.1.in": 1.0, "layers.0.v_proj": 0.7, "layers.1.v_proj": 0.8}
        for name, path in paths.items():
            path.lora_B.mul_(wanted.get(name, 1e-3) * scores["layers.1.in"] / scores[name])
    scores = rankwise.score_paths(model, text(2), proxy="snip", score_on="factors")
    assert max(scores, key=scores.__getitem__) == "layers.1.in"
    allocator = rankwise.Allocator(model, batches=text(2))
    assert allocator.search()["chosen"] == ["layers.0.v_proj", "layers.1.v_proj"]
    allocator.close()


# A search through an ordinary training loop.


def text(count: int) -> list[Batch]:
    return [{"input_ids": ids, "labels": ids} for ids in (tokens(seed=seed) for seed in range(count))]


def classes(count: int) -> list[Batch]:
    return [{"input_ids": tokens(4, seed=seed), "labels": torch.arange(4) % 2} for seed in range(count)]


VARIANTS = [
    ("bert", "inside", "combined"),
    ("bert", "reapply", "separated"),
    ("opt-post", "inside", "separated"),
    ("opt-pre", "inside", "combined"),
    ("llama", "inside", "combined"),
    ("gemma2", "inside", "separated"),
]
variants = pytest.mark.parametrize(("name", "norm", "allocation"), VARIANTS)


def searching(name: str, norm: str = "inside", allocation: str = "combined", **fields: Any) -> Any:
    """Adapt a model that searches all kinds after every second step."""
    family = FAMILIES[name]
    options: dict[str, Any] = {"budget": 0.4, "search_every": 2, "score_batches": 2, "mode": "dynamic", **fields}
    return adapted(
        family(),
        target_modules=list(family.targets),
        shortcuts=[*ALL, "layer"] if family.post_norm else ALL,
        shortcut_r=3,
        shortcut_norm=norm,
        allocation=allocation,
        task_type="CAUSAL_LM" if family.causal else "SEQ_CLS",
        **options,
    ).train()


def optimizer_of(model: Any) -> Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)


def tensors(model: Any) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def owners(model: Any) -> dict[str, str]:
    """Return the path that each of the paths' tensors belongs to, by the tensor's name."""
    paths = rankwise.named_paths(model).items()
    ids = {id(parameter): name for name, path in paths for parameter in path.parameters}
    return {name: ids[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in ids}


def enabled(model: Any) -> set[str]:
    return {name for name, path in rankwise.named_paths(model).items() if path.enabled}


def loop(model: Any, optimizer: Optimizer, count: int) -> Iterator[tuple[Weights, Weights, set[str]]]:
    """Train; yield all weights before and after each step (its search comes later), and what was on during the step."""
    seen: list[Weights] = []
    handle = optimizer.register_step_post_hook(lambda *_: seen.append(tensors(model)))  # runs before the search
    data = text(count) if model.config.model_type in ("llama", "gemma2", "opt") else classes(count)
    for batch in data:
        loss = model(**batch).loss
        on, before = enabled(model), tensors(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield before, seen.pop(), on
    handle.remove()


@pytest.mark.parametrize("on_disable", ["keep", "reset", "freeze"])
@variants
def test_a_step_moves_what_is_enabled_and_nothing_else(name: str, norm: str, allocation: str, on_disable: str) -> None:
    model = searching(name, norm, allocation, on_disable=on_disable)
    optimizer, of = optimizer_of(model), owners(model)
    limit, costs = rankwise.plan(model).budget, path_set(model).costs()
    head = {key for key, p in model.named_parameters() if p.requires_grad and key not in of}
    assert bool(head) == (name == "bert")
    seen = []
    for before, after, on in loop(model, optimizer, 9):
        assert 0 < sum(costs[path] for path in on) <= limit
        changed = {key for key in after if not torch.equal(after[key], before[key])}
        assert changed == {key for key, path in of.items() if path in on} | head
        seen.append(on)
    assert [record["step"] for record in rankwise.history(model)] == [2, 4, 6, 8]
    assert len({frozenset(on) for on in seen}) > 2, "the search never changed its mind"
    rankwise.detach(model)


@variants
def test_a_path_that_is_off_does_not_drift(name: str, norm: str, allocation: str) -> None:
    """From the search that switches it off to the one that switches it on, to the last bit."""
    model = searching(name, norm, allocation, proxy="constant", budget=0.5)
    of, resting, checked = owners(model), tensors(model), 0
    for before, after, on in loop(model, optimizer_of(model), 12):
        for key, path in of.items():
            if path in on:
                resting[key] = after[key]
            else:
                checked += 1
                assert torch.equal(before[key], resting[key])
                assert torch.equal(after[key], resting[key])
    assert checked > 100
    rankwise.detach(model)


@pytest.mark.parametrize("on_disable", ["keep", "reset", "freeze"])
@variants
def test_what_becomes_of_a_path_that_a_search_switches_off(
    name: str, norm: str, allocation: str, on_disable: str
) -> None:
    model = searching(name, norm, allocation, on_disable=on_disable, proxy="constant", budget=0.5)
    paths, optimizer = rankwise.named_paths(model), optimizer_of(model)
    switched: set[str] = set()
    for _, after, on in loop(model, optimizer, 8):
        for path_name in on - enabled(model):  # the search after this step switched it off
            path = paths[path_name]
            switched.add(path.kind)
            down, up = (next(after[k] for k, p in model.named_parameters() if p is own) for own in path.parameters)
            assert torch.equal(path.lora_A, down)
            assert torch.equal(path.lora_B, torch.zeros_like(up) if on_disable == "reset" else up)
            assert up.any()
            assert path.contributing == (on_disable == "freeze")
            assert [p in optimizer.state for p in path.parameters] == [on_disable != "reset"] * 2
            assert all(p.requires_grad and p.grad is None for p in path.parameters)
    assert switched >= {"linear", *ALL}
    counts = path_set(model).counts()
    assert counts["enabled"] <= rankwise.plan(model).budget
    assert bool(counts["frozen"]) == (on_disable == "freeze")
    rankwise.detach(model)


def forward(model: Any) -> Tensor:
    found: Tensor = model.eval()(input_ids=tokens()).logits
    return found


@pytest.mark.parametrize("kind", [*ALL, "layer"])
@pytest.mark.parametrize("on_disable", ["keep", "reset", "freeze"])
@pytest.mark.parametrize(("name", "norm"), [("bert", "inside"), ("bert", "reapply"), ("opt-post", "inside")])
def test_what_a_shortcut_that_is_switched_off_contributes(name: str, norm: str, on_disable: str, kind: str) -> None:
    model = searching(name, norm, mode="off", on_disable=on_disable)
    fill_(model)
    whole = forward(model).detach()
    off = f"layers.1.{kind}"
    rankwise.apply_(model, [rankwise.Disable(off)])
    found, path = forward(model), rankwise.named_paths(model)[off]
    assert (path.enabled, path.contributing) == (False, on_disable == "freeze")
    found.sum().backward()
    assert all(p.grad is None for p in path.parameters)
    if on_disable == "freeze":
        torch.testing.assert_close(found, whole, rtol=0, atol=0)
        assert path.lora_B.any()
        return
    assert not torch.allclose(found, whole, atol=1e-4), "the path made no difference, so the test shows nothing"
    rankwise.apply_(model, [rankwise.Enable(off)])
    back = forward(model)
    torch.testing.assert_close(back, found if on_disable == "reset" else whole, rtol=0, atol=1e-6)


# The record.


@pytest.mark.parametrize("scoring", ["online", "probe"])
@variants
def test_the_record_holds_all_kinds(name: str, norm: str, allocation: str, scoring: str, tmp_path: Path) -> None:
    model = searching(name, norm, allocation, scoring=scoring)
    data = classes(2) if name == "bert" else text(2)
    rankwise.Allocator(model, batches=data)
    for _ in loop(model, optimizer_of(model), 5):
        pass
    rankwise.detach(model)
    records, costs = rankwise.history(model), path_set(model).costs()
    assert [record["how"] for record in records] == ["probe", *[scoring] * 2]
    shortcut_share = sum(costs[n] for n in costs if is_shortcut(n)) / sum(costs.values())
    for record in records:
        assert list(record["scores"]) == list(rankwise.named_paths(model))
        assert all(score is not None and score > 0 for score in record["scores"].values())
        spent = sum(costs[n] for n in record["chosen"])
        assert record["counts"]["enabled"] == spent <= rankwise.plan(model).budget
        assert record["counts"]["resident"] == sum(costs.values())
        if allocation == "separated":
            on_shortcuts = sum(costs[n] for n in record["chosen"] if is_shortcut(n))
            assert 0 < on_shortcuts <= rankwise.plan(model).budget * shortcut_share + 1
    assert any(is_shortcut(n) for record in records for n in record["chosen"])
    assert set(records[-1]["chosen"]) == enabled(model)
    assert from_lines(to_lines(records), "history") == records
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(FAMILIES[name](), tmp_path)
    assert rankwise.history(again) == records
    assert enabled(again) == enabled(model)


@variants
def test_a_budget_of_nothing_and_of_everything(name: str, norm: str, allocation: str) -> None:
    for budget, share in ((0.0, 0), (1.0, 1)):
        model = searching(name, norm, allocation, budget=budget)
        for _, _, on in loop(model, optimizer_of(model) if name == "bert" or share else head_only(model), 3):
            assert len(on) == share * len(rankwise.named_paths(model))
        rankwise.detach(model)


def head_only(model: Any) -> Optimizer:
    """With nothing on, and no head, only a bias gives the loss something to go back to."""
    bias = next(p for key, p in model.named_parameters() if "lora_" not in key and p.dim() == 1)
    bias.requires_grad_()
    return optimizer_of(model)


def test_keeping_nothing_but_linear_paths_is_plain_lora() -> None:
    """With every shortcut off, scores and steps of the linear paths are those of a model without shortcuts."""
    linear = adapted(FAMILIES["llama"](), target_modules=["q_proj", "v_proj"], shortcuts=[])
    both = adapted(FAMILIES["llama"](), target_modules=["q_proj", "v_proj"], shortcuts=ALL)
    keep_only_(both, *rankwise.named_paths(linear))
    for model in (linear, both):
        optimizer = optimizer_of(model)
        for batch in text(3):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    others = rankwise.named_paths(both)
    for name, path in rankwise.named_paths(linear).items():
        assert torch.equal(path.lora_A, others[name].lora_A)
        assert torch.equal(path.lora_B, others[name].lora_B)
