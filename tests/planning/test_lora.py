"""A plain LoRA planned by whole paths or by rank: what it chooses, what it refuses, and that it leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.families import FAMILIES
from tests.models import Batch, adapted, class_batches, fill_, logits, text_batches, tiny_bert, tiny_llama
from tests.planning.test_ranks import plan_of
from tests.traces import assert_same, snapshot
from torch import Tensor, nn
from transformers import BertForSequenceClassification

import rankwise
from rankwise.scores.probe import model_loss


def used_model() -> BertForSequenceClassification:
    """A model in the middle of something: training mode, some weights frozen, some gradients waiting."""
    model = tiny_bert(hidden_dropout_prob=0.3)
    model.train()
    model.bert.embeddings.requires_grad_(False)
    model(**class_batches(1)[0]).loss.backward()
    model.classifier.weight.grad = None
    return model


@pytest.mark.parametrize("task_type", [None, pytest.param("SEQ_CLS")])
@pytest.mark.parametrize("proxy", ["grad_norm", "snip", "synflow", "constant", "random"])
def test_planning_a_lora_leaves_the_model_as_found(proxy: str, task_type: str | None) -> None:
    model = used_model()
    before = snapshot(model)
    planned = rankwise.plan_lora(
        model, class_batches(), proxy=proxy, target_modules=["query", "value"], task_type=task_type
    )
    assert_same(before, snapshot(model))
    assert len(planned.target_modules or ()) == 1


PATHS: dict[str, Any] = {"granularity": "path", "target_modules": ["query", "value"]}


def broken(batches: list[Batch]) -> Iterator[Batch]:
    yield batches[0]
    raise RuntimeError("the disk went away")


def raises(model: nn.Module, batch: Batch) -> Tensor:
    raise RuntimeError("a bug in the user's loss")


@pytest.mark.parametrize(
    ("batches", "fields", "error", "words"),
    [
        (broken(class_batches()), {}, RuntimeError, "the disk went away"),
        (class_batches(), {"compute_loss": raises}, RuntimeError, "a bug in the user's loss"),
        ([], {}, ValueError, "proxy='grad_norm' needs training batches, got none"),
        (
            [{"input_ids": class_batches()[0]["input_ids"]}],
            {},
            ValueError,
            "no loss for a batch with the keys input_ids",
        ),
        (class_batches(), {"budget": 0.0}, ValueError, r"budget=0\.0 leaves room for no path of r=8"),
        (class_batches(), {"budget": 5}, ValueError, "budget=5 leaves room for no path"),
        (class_batches(), {"proxy": "gradnorm"}, ValueError, "did you mean 'grad_norm'"),
        (class_batches(), {"target_modules": ["quary"]}, ValueError, "did you mean 'query'"),
        (class_batches(), {"target_modules": r".*(query|word_embeddings)"}, ValueError, "target linear layers only"),
    ],
)
def test_planning_a_lora_that_fails_leaves_the_model_as_found(
    batches: Any, fields: dict[str, Any], error: type[Exception], words: str
) -> None:
    model = used_model()
    before = snapshot(model)
    with pytest.raises(error, match=words):
        rankwise.plan_lora(model, batches, **{**PATHS, **fields})
    assert_same(before, snapshot(model))


class Odd(nn.Module):
    """A linear layer before one that no path can run along."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Conv1d(2, 2, 1)


def test_a_target_refused_halfway_leaves_no_half_built_adapter() -> None:
    model = Odd()
    before = snapshot(model)
    with pytest.raises(ValueError, match="'second', a Conv1d"):
        rankwise.plan_lora(model, [], proxy="constant", target_modules=["first", "second"])
    assert_same(before, snapshot(model))


def test_nothing_of_the_search_stays_on_the_model() -> None:
    model = tiny_bert()
    attributes, hooks = set(vars(model)), len(model._forward_pre_hooks)
    planned = rankwise.plan_lora(model, class_batches(), **PATHS, task_type="SEQ_CLS")
    assert len(model._forward_pre_hooks) == hooks
    assert set(vars(model)) == attributes
    wrapped = get_peft_model(model, planned)  # a warning that the model has an adapter already would be an error here
    with pytest.raises(ValueError, match="no rankwise paths"):
        rankwise.named_paths(wrapped)


@pytest.mark.parametrize("budget", [0.1, 0.25, 0.5, 1.0, 100, 130])
@pytest.mark.parametrize("proxy", ["grad_norm", "constant"])
def test_the_planned_lora_obeys_the_budget(budget: float, proxy: str) -> None:
    model, targets = tiny_llama(4), ["q_proj", "v_proj", "down_proj"]
    resident = 4 * (64 + 48 + 80)
    planned = rankwise.plan_lora(model, text_batches(), budget=budget, proxy=proxy, target_modules=targets, r=2)
    limit = int(budget * resident) if isinstance(budget, float) else budget
    wrapped = get_peft_model(model, planned)
    spent = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert limit - 80 < spent <= limit  # what is left has room for no path of the largest cost
    assert type(planned) is LoraConfig
    assert (planned.r, planned.lora_alpha, planned.rank_pattern, planned.alpha_pattern) == (2, 16, {}, {})


def test_the_planned_lora_takes_the_highest_scores_and_trains_with_plain_peft(tmp_path: Path) -> None:
    model, batches = tiny_bert(4), class_batches()
    fields: dict[str, Any] = {"target_modules": ["query", "value"], "task_type": "SEQ_CLS", "r": 2, "lora_alpha": 4}
    planned = rankwise.plan_lora(model, batches, budget=0.5, lora_dropout=0.1, granularity="path", **fields)
    scores = rankwise.score_paths(adapted(tiny_bert(4), **fields), batches)
    best = sorted(scores, key=scores.__getitem__)[-4:]
    names = {f"bert.encoder.layer.{name.split('.')[1]}.attention.self.{name.split('.')[2]}" for name in best}
    planned.save_pretrained(str(tmp_path))
    loaded = LoraConfig.from_pretrained(str(tmp_path))
    assert loaded.target_modules == names
    assert (loaded.task_type, loaded.lora_dropout, loaded.inference_mode) == ("SEQ_CLS", 0.1, False)
    wrapped = get_peft_model(model, loaded)
    assert isinstance(wrapped, PeftModel)
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(12):
        loss = wrapped.eval()(**batches[0]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    wrapped.save_pretrained(str(tmp_path / "trained"))
    back = PeftModel.from_pretrained(tiny_bert(4), str(tmp_path / "trained"))
    torch.testing.assert_close(logits(back), logits(wrapped), rtol=0, atol=0)


def test_the_seed_decides_a_random_plan() -> None:
    def chosen(seed: int) -> set[str]:
        fields: dict[str, Any] = {"proxy": "constant", "target_modules": ["query", "value"], "seed": seed}
        return set(rankwise.plan_lora(tiny_bert(4), [], budget=0.5, **fields).target_modules or ())

    assert chosen(0) == chosen(0)
    assert len({frozenset(chosen(seed)) for seed in range(6)}) > 1


def test_a_plan_of_paths_counts_paths() -> None:
    planned = rankwise.plan_lora(
        tiny_llama(4), text_batches(), budget=5, budget_unit="paths", target_modules=["v_proj", "down_proj"]
    )
    assert len(planned.target_modules or ()) == 5


def test_a_model_that_has_an_adapter_is_not_planned_over() -> None:
    model = adapted(tiny_bert(), target_modules=["query"])
    fill_(model)
    expected, before = logits(model), set(rankwise.named_paths(model))
    with pytest.raises(ValueError, match="adapter"):
        rankwise.plan_lora(model, class_batches(), target_modules=["value"])
    with pytest.raises(ValueError, match="adapter"):
        rankwise.plan_lora(model, class_batches(), target_modules=["value"], granularity="path")
    assert set(rankwise.named_paths(model)) == before
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=0)


def test_plan_lora_by_rank_is_a_rank_plan() -> None:
    plan = plan_of(budget=500)
    config = rankwise.plan_lora(
        tiny_llama(), text_batches(6, 4), budget=500, granularity="rank", lora_dropout=0.1, task_type="CAUSAL_LM"
    )
    assert type(config) is LoraConfig
    assert config.lora_dropout == 0.1
    expected = plan.to_lora_config()
    assert (config.target_modules, config.rank_pattern) == (expected.target_modules, expected.rank_pattern)


def test_a_plan_is_by_rank_unless_something_asks_for_whole_paths() -> None:
    fields: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 8}
    model, batches = tiny_llama(), text_batches(6, 4)
    whole = sum(path.num_parameters for path in rankwise.named_paths(adapted(tiny_llama(), **fields)).values())
    planned = rankwise.plan_lora(model, batches, budget=0.5, **fields)
    counted = rankwise.plan_lora(model, batches, budget=whole // 2, granularity="rank", **fields)
    assert planned.to_dict() == counted.to_dict()
    assert len({planned.r, *(planned.rank_pattern or {}).values()}) > 1, "ranks differ, which whole paths' would not"
    for asks in ({"proxy": "snip"}, {"score_on": "factors"}, {"budget_unit": "paths", "budget": 2}):
        by_path = rankwise.plan_lora(model, batches, **{"budget": 0.5, **fields, **asks})
        assert (by_path.r, by_path.rank_pattern) == (4, {})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"granularity": "ranks"}, "granularity='ranks' is not one of 'path', 'rank', did you mean 'rank'"),
        ({"budget": 1.5}, r"budget=1\.5 must be above 0 and at most 1, a fraction of .* at r=8, or a number"),
        ({"budget": 0.0}, r"budget=0\.0 must be above 0"),
        ({"budget": "500"}, "budget='500' must be a number of parameters"),
        ({"budget": True}, "budget=True must be a number of parameters"),
        ({"proxy": "snip"}, "proxy='snip' goes by whole paths, and granularity='rank' needs proxy='newton'"),
        ({"score_on": "factors"}, "needs score_on='weight': leave it out, or use granularity='path'"),
        ({"budget_unit": "paths"}, "needs budget_unit='parameters'"),
        ({"r": 0}, "r=0 must be a whole number of at least 1"),
        ({"r": 2.5}, r"r=2\.5 must be a whole number"),
        ({"lora_alpha": 0}, "lora_alpha=0 must be positive"),
        ({"lora_alpha": "16"}, "lora_alpha='16' must be positive"),
    ],
)
def test_what_ranks_do_not_have_is_refused_before_any_pass(fields: dict[str, Any], words: str) -> None:
    def unasked(model: nn.Module, batch: Batch) -> Tensor:
        raise AssertionError("a pass was made")

    options: dict[str, Any] = {"budget": 500, "granularity": "rank", "compute_loss": unasked, **fields}
    with pytest.raises(ValueError, match=words):
        rankwise.plan_lora(tiny_llama(), text_batches(6, 4), **options)


def test_by_rank_only_the_ratio_of_alpha_and_r_counts() -> None:
    plans = [
        rankwise.plan_lora(tiny_llama(), text_batches(6, 4), budget=500, granularity="rank", r=r, lora_alpha=alpha)
        for r, alpha in ((8, 24), (1, 3))
    ]
    assert plans[0].to_dict() == plans[1].to_dict()
    wrapped: Any = get_peft_model(tiny_llama(), plans[0])
    assert {m.scaling["default"] for m in wrapped.modules() if getattr(m, "lora_A", None)} == {3.0}


def test_what_is_left_of_a_budget_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Two paths of 64 parameters fit into 130."""
    with caplog.at_level("INFO", logger="rankwise"):
        rankwise.plan_lora(tiny_bert(), class_batches(), budget=130, **PATHS, r=2)
    assert "plan_lora: 2 of 130 are left" in caplog.text


def test_by_rank_an_error_names_what_takes_the_option_that_it_asks_for() -> None:
    with pytest.raises(ValueError, match=r"say rankwise\.rank_plan\(reduction='sum'\)"):
        rankwise.plan_lora(
            tiny_llama(),
            text_batches(6, 4),
            budget=500,
            granularity="rank",
            compute_loss=lambda model, batch: 20 * model_loss(model, batch),
        )


@pytest.mark.parametrize("granularity", ["path", "rank"])
def test_what_peft_takes_for_experts_is_left_out_and_refused_before_a_pass_where_it_was_named(granularity: str) -> None:
    family = FAMILIES["qwen3-moe"]
    options: dict[str, Any] = {"granularity": granularity, "r": 2, "lora_alpha": 4}
    planned = rankwise.plan_lora(family(2), text_batches(6, 4), target_modules="all-linear", budget=1.0, **options)
    model: Any = get_peft_model(family(2), planned)
    names = {name.split(".")[-4] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}
    before = snapshot(base := family(2))
    with pytest.raises(ValueError, match=r"PEFT takes model\.layers\.1\.mlp\..*: leave them out of target_modules"):
        rankwise.plan_lora(
            base, text_batches(6, 4), target_modules=["q_proj", "up_proj"], budget=500, compute_loss=raises, **options
        )
    assert_same(before, snapshot(base))
