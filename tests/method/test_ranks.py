"""Ranks computed from a number of parameters (Table 3 of arXiv 2406.14956, without memory), and whose they are."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.families import FAMILIES
from tests.models import adapted, fill_, tiny_bert, tiny_llama
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, OPTConfig

import rankwise

OPT_350M = OPTConfig(
    hidden_size=1024,
    ffn_dim=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    word_embed_proj_dim=512,
    do_layer_norm_before=False,
)
ALL = ["res1", "res2", "in", "cut"]
SMALL, LARGE = 2_359_296, 9_437_184


def config(**fields: Any) -> rankwise.HeteroLoraConfig:
    options = {"task_type": "SEQ_CLS", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], **fields}
    options.setdefault("mode", "dynamic")
    return rankwise.HeteroLoraConfig(**options)


def hollow(fields: dict[str, Any]) -> PeftModel:
    """Adapt OPT-350M on the meta device."""
    with torch.device("meta"):
        base = AutoModelForSequenceClassification.from_config(copy.deepcopy(OPT_350M))
    model = get_peft_model(base, config(**fields), low_cpu_mem_usage=True)
    assert isinstance(model, PeftModel)
    return model


@pytest.mark.parametrize(
    ("fields", "ranks", "parameters"),
    [
        ({"rank_budget": SMALL}, (24, None), 2_359_296),
        ({"rank_budget": SMALL, "shortcuts": ALL}, (8, 8), 2_342_912),
        ({"rank_budget": SMALL, "shortcuts": ALL, "rank_shape": "shortcuts", "r": 2}, (2, 11), 2_336_768),
        ({"rank_budget": LARGE}, (96, None), 9_437_184),
        ({"rank_budget": LARGE, "shortcuts": ALL}, (32, 32), 9_371_648),
        ({"rank_budget": LARGE, "shortcuts": ALL, "rank_shape": "shortcuts", "r": 2}, (2, 47), 9_340_928),
        ({"r": 2, "shortcuts": ALL}, (2, None), 585_728),  # Table 4: all paths, but of rank 2
    ],
    ids=["LoRA-2.3M", "same-2.3M", "shortcuts-2.3M", "LoRA-9.4M", "same-9.4M", "shortcuts-9.4M", "S&L r=2"],
)
def test_the_sizes_of_the_paper(fields: dict[str, Any], ranks: tuple[int, int | None], parameters: int) -> None:
    plan = rankwise.plan(OPT_350M, config(**fields, mode="off"))
    assert plan.resident == plan.enabled == parameters
    assert plan.candidates == (143 if "shortcuts" in fields else 48)
    model = hollow({**fields, "mode": "off"})
    found: Any = model.peft_config["default"]
    assert (found.r, found.shortcut_r) == ranks
    paths = rankwise.named_paths(model).values()
    assert {path.r for path in paths if path.kind == "linear"} == {ranks[0]}
    assert {path.r for path in paths if path.kind != "linear"} == (
        {ranks[1] or ranks[0]} if "shortcuts" in fields else set()
    )
    assert sum(path.num_parameters for path in paths) == parameters


@pytest.mark.parametrize("r", [8, 32])
def test_a_quarter_of_the_paths(r: int) -> None:
    """Table 4: 36 of 143 paths at r = 8 against all at r = 2."""
    fields = {"r": r, "shortcuts": ALL, "budget": 0.25, "budget_unit": "paths"}
    plan = rankwise.plan(OPT_350M, config(**fields))
    assert (plan.budget, plan.enabled) == (36, {8: 589_824, 32: 2_359_296}[r])
    paths = rankwise.named_paths(hollow(fields)).values()
    assert sum(path.num_parameters for path in paths if path.enabled) == plan.enabled


@pytest.mark.parametrize("shape", ["same", "shortcuts"])
@pytest.mark.parametrize("name", ["bert", "llama", "gemma2", "opt-post"])
def test_the_rank_is_the_largest_that_fits(name: str, shape: str) -> None:
    """Grouped queries and wide heads have costs of their own; one rank more would be too many parameters."""
    family, budget = FAMILIES[name], 5000
    targets = [*family.targets, {"bert": "intermediate.dense", "opt-post": "fc1"}.get(name, "down_proj")]
    fields = {"target_modules": targets, "shortcuts": ["res1", "cut"], "rank_budget": budget, "rank_shape": shape}
    paths = rankwise.named_paths(adapted(family(), **fields)).values()
    spent = sum(path.num_parameters for path in paths)
    grown = [path for path in paths if shape == "same" or path.kind != "linear"]
    assert len({path.r for path in grown}) == 1
    assert spent <= budget < spent + sum(path.num_parameters // path.r for path in grown)


def test_only_the_blocks_that_are_transformed_count() -> None:
    fields = {"target_modules": ["query"], "shortcuts": ["res1", "cut"], "layers_to_transform": [0, 2]}
    model = adapted(tiny_bert(3), rank_budget=5 * 32 * 7 + 31, **fields)
    assert {path.r for path in rankwise.named_paths(model).values()} == {7}
    assert len(rankwise.named_paths(model)) == 5


def test_shortcuts_alone_take_it_all() -> None:
    for shape in ("same", "shortcuts"):
        model = adapted(tiny_bert(), target_modules=[], shortcuts=["res1"], rank_budget=2 * 32 * 5, rank_shape=shape)
        assert [path.r for path in rankwise.named_paths(model).values()] == [5, 5]


def test_a_saved_adapter_comes_back_with_its_ranks(tmp_path: Any) -> None:
    fields = {"target_modules": ["q_proj", "v_proj"], "shortcuts": ["res1", "in"], "rank_budget": 1500}
    model = adapted(tiny_llama(), **fields, rank_shape="shortcuts")
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    ranks = {name: path.r for name, path in rankwise.named_paths(model).items()}
    assert {name: path.r for name, path in rankwise.named_paths(again).items()} == ranks
    assert len(set(ranks.values())) == 2


def test_a_second_adapter_has_its_own_budget() -> None:
    fields: dict[str, Any] = {"target_modules": ["query"], "shortcuts": ["res1"], "mode": "off"}
    model = adapted(tiny_bert(), rank_budget=4 * 32 * 3, **fields)
    model.add_adapter("other", rankwise.HeteroLoraConfig(rank_budget=4 * 32 * 5, **fields))
    assert {path.r for path in rankwise.named_paths(model, "default").values()} == {3}
    assert {path.r for path in rankwise.named_paths(model, "other").values()} == {5}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rank_budget": 127}, "rank_budget=127 with rank_shape='same' .* less than rank 1.* at least 128 parameters"),
        ({"rank_budget": 191, "rank_shape": "shortcuts"}, "rank_shape='shortcuts' .* at least 192 parameters"),
        ({"rank_budget": 3, "rank_shape": "shortcuts"}, "raise rank_budget, target fewer modules or name fewer"),
    ],
)
def test_too_few_parameters_for_a_rank_of_one(fields: dict[str, Any], words: str) -> None:
    """Two linear paths and two shortcuts of 32 parameters per rank; r = 2 for the linear ones of a shape."""
    with pytest.raises(ValueError, match=words):
        adapted(tiny_bert(), target_modules=["query"], shortcuts=["res1"], **fields)


@pytest.mark.parametrize("fields", [{"rank_budget": 128}, {"rank_budget": 192, "rank_shape": "shortcuts"}])
def test_just_enough_parameters(fields: dict[str, Any]) -> None:
    model = adapted(tiny_bert(), target_modules=["query"], shortcuts=["res1"], **fields)
    assert {path.r for path in rankwise.named_paths(model).values() if path.kind == "res1"} == {1}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern and alpha_pattern can't be given with it"),
        ({"alpha_pattern": {"q_proj": 4}}, "rank_pattern and alpha_pattern can't be given with it"),
        ({"rank_budget": 0}, "rank_budget=0 must be a whole number of at least 1"),
        ({"rank_budget": 1e6}, "rank_budget=1000000.0 must be a whole number"),
        ({"rank_budget": True}, "rank_budget=True must be a whole number"),
        ({"rank_shape": "shortcuts"}, "rank_shape='shortcuts' gives what r leaves to shortcuts, and there are none"),
        ({"rank_shape": "equal"}, "rank_shape='equal' is not one of 'same', 'shortcuts'"),
    ],
)
def test_a_mistake_is_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(**{"rank_budget": SMALL, **fields})


class Taught(nn.Module):
    """A student and its teacher: the full names of the student's modules are the ends of the teacher's."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.student = nn.ModuleDict({"down": nn.Linear(6, 8), "up": nn.Linear(8, 6)})
            self.teacher = nn.ModuleDict({"student": nn.ModuleDict({"down": nn.Linear(6, 8), "up": nn.Linear(8, 6)})})
            self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        inner: Any = self.teacher["student"]
        for part, share in ((self.student, 1.0), (inner, 0.01)):  # so little that its paths are not worth a rank
            x = x + share * part["up"](torch.tanh(part["down"](x)))
        found = {"logits": self.out(x)}
        return found if labels is None else {**found, "loss": nn.functional.cross_entropy(found["logits"], labels)}


STUDENT = r"student\..*"


def taught_batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(8, 6, generator=generator), "labels": torch.arange(8) % 3} for _ in range(4)]


def lora_of(model: nn.Module) -> dict[str, int]:
    """The rank of every module that has LoRA."""
    ends = ".lora_A.default.weight"
    found = {name: parameter.shape[0] for name, parameter in model.named_parameters() if name.endswith(ends)}
    return {name.removeprefix("base_model.model.").removesuffix(ends): rank for name, rank in found.items()}


@pytest.mark.parametrize("targets", [STUDENT, ["down", "up"]], ids=["expression", "list"])
def test_a_plan_is_for_the_modules_it_names_and_for_none_whose_names_end_so(targets: Any) -> None:
    plan = rankwise.rank_plan(Taught(), taught_batches(), budget=42, target_modules=targets, components=2)
    assert not any(plan.ranks.get(name) for name in ("teacher.student.down", "teacher.student.up"))
    assert plan.chosen
    plan = rankwise.RankPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    model: Any = get_peft_model(Taught(), plan.to_lora_config())
    assert lora_of(model) == {plan.modules[name]: rank for name, rank in plan.chosen.items()}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == plan.spent <= 42


@pytest.mark.parametrize("targets", [STUDENT, ["down", "up"]], ids=["expression", "list"])
def test_ranks_chosen_before_training_are_loaded_where_they_were(targets: Any, tmp_path: Path) -> None:
    model = adapted(Taught(), target_modules=targets, mode="static", granularity="rank", budget=42, score_batches=4)
    rankwise.Allocator(model, batches=taught_batches(), plan={"components": 2})
    chosen = lora_of(model)
    assert chosen
    assert all(name.startswith("student") for name in chosen)
    model.save_pretrained(str(tmp_path))
    assert lora_of(PeftModel.from_pretrained(Taught(), tmp_path)) == chosen


@pytest.mark.parametrize("by_pattern", [False, True])
def test_an_export_is_for_the_modules_it_names(by_pattern: bool, tmp_path: Path) -> None:
    sizes = {"^student.down": 1, "teacher.student.down": 3}
    model = adapted(Taught(), target_modules=["down", "up"], rank_pattern=sizes)
    fill_(model)
    off = "student.up" if by_pattern else "teacher.student.up"
    rankwise.apply_(model, [rankwise.Disable(off)])
    live = {path.module: path.r for path in rankwise.named_paths(model).values() if path.contributing}
    rankwise.export_lora(model, tmp_path, rank_pattern=by_pattern)
    loaded = PeftModel.from_pretrained(Taught(), tmp_path).eval()
    assert lora_of(loaded) == (live if by_pattern else dict.fromkeys(live, 3))
    (batch, *_) = taught_batches()
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch["x"])["logits"], model(batch["x"])["logits"])


def test_a_choice_of_whole_paths_is_for_the_modules_it_names() -> None:
    config = rankwise.plan_lora(
        Taught(), taught_batches(), budget=2, budget_unit="paths", target_modules=STUDENT, granularity="path", r=2
    )
    assert lora_of(get_peft_model(Taught(), config)) == {"student.down": 2, "student.up": 2}
