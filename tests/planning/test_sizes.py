from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.models import (
    Batch,
    adapted,
    bert_config,
    class_batches,
    fill_,
    llama_config,
    logits,
    text_batches,
    tiny_bert,
    tiny_llama,
)
from torch import Tensor, nn
from transformers import BertForSequenceClassification, LlamaConfig, OPTConfig, PreTrainedConfig, T5Config

import rankwise

LLAMA_70B = LlamaConfig(
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    vocab_size=128256,
)
OPT_350M = OPTConfig(
    hidden_size=1024,
    ffn_dim=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    word_embed_proj_dim=512,
    do_layer_norm_before=False,
)


def config(**fields: Any) -> rankwise.HeteroLoraConfig:
    return rankwise.HeteroLoraConfig(**{"r": 2, "lora_alpha": 4, **fields})


@pytest.mark.parametrize(
    ("of", "fields", "expected"),
    [
        (
            bert_config(3),
            {"task_type": "SEQ_CLS", "target_modules": ["query", "value"], "budget": 0.5},
            # r (i + o) = 2 (16 + 16); the classifier is 2 x 16 + 2; sums of 16 x 16
            {"candidates": 6, "resident": 6 * 64, "budget": 192, "enabled": 192, "head": 34, "window_bytes": 6144},
        ),
        (
            llama_config(2),  # keys and values are 8 wide
            {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"], "budget": 0.25},
            {"candidates": 4, "resident": 2 * 64 + 2 * 48, "budget": 56, "enabled": 56, "head": 0},
        ),
        (
            llama_config(2),
            {"task_type": "CAUSAL_LM", "target_modules": ["v_proj", "down_proj"], "budget": 3, "budget_unit": "paths"},
            {
                "resident": 2 * 48 + 2 * 80,
                "budget": 3,
                "budget_unit": "paths",
                "enabled": 2 * 80 + 48,
                "flops_per_token": 416,
            },
        ),
        (
            llama_config(2),
            {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "mode": "off", "modules_to_save": ["lm_head"]},
            {
                "enabled": 128,
                "contributing": 128,
                "budget": 128,
                "head": 40 * 16,
                "optimizer_bytes": 8 * (128 + 640),
                "gradient_bytes": 4 * (128 + 640),
                "window_bytes": 0,
            },
        ),
        (
            llama_config(2),
            {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "budget": 10**6},
            {"enabled": 128, "budget": 10**6},
        ),
        (llama_config(2), {"target_modules": ["q_proj"], "budget": 0}, {"enabled": 0, "flops_per_token": 0}),
        (
            llama_config(2),
            {"task_type": "CAUSAL_LM", "target_modules": ["v_proj"], "score_on": "factors", "budget": 0.5},
            {"window_bytes": 2 * 48 * 4},
        ),
        (
            llama_config(2),
            {"task_type": "CAUSAL_LM", "target_modules": ["v_proj"], "sketch": 5, "budget": 0.5},
            {"window_bytes": 2 * 8 * 5 * 4},
        ),
        (
            llama_config(2),
            {"task_type": "CAUSAL_LM", "target_modules": ["v_proj"], "sketch": 5, "proxy": "snip", "budget": 0.5},
            {"window_bytes": 2 * 8 * 16 * 4},  # snip is exact whatever the sketch says
        ),
        (
            OPT_350M,
            {"r": 8, "target_modules": ["q_proj", "v_proj"]},
            {"candidates": 48, "resident": 786_432, "enabled": 196_608},
        ),
    ],
)
def test_a_plan_equals_counts_by_hand(of: PreTrainedConfig, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    made = rankwise.plan(of, config(**fields)).to_dict()
    assert {name: made[name] for name in expected} == expected
    assert made["frozen"] == 0
    assert made["contributing"] == made["enabled"]


def test_seventy_billion_parameters_are_planned_without_memory() -> None:
    chosen = config(r=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", modules_to_save=None)
    made = rankwise.plan(LLAMA_70B, chosen)
    assert made.base == 70_553_706_496
    assert made.resident == 80 * 16 * ((8192 + 8192) + (8192 + 1024))
    assert made.budget == made.resident // 4
    assert made.window_bytes == 80 * (8192 + 1024) * 16 * 4, "exact sums would not fit, so they are sketched"
    assert asdict(chosen) == asdict(config(r=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_plan_of_a_model_and_of_its_config_agree_and_leave_both_alone(seed: int) -> None:
    base, fields = tiny_bert(seed=seed), config(task_type="SEQ_CLS", target_modules=["query"], budget=0.5)
    before, rng = state_of(base), torch.get_rng_state()
    made = rankwise.plan(base, fields)
    assert made == rankwise.plan(base.config, fields)
    assert made.base == sum(p.numel() for p in base.parameters())
    assert asdict(fields) == asdict(config(task_type="SEQ_CLS", target_modules=["query"], budget=0.5))
    assert torch.equal(torch.get_rng_state(), rng)
    same_state(base, before)


@pytest.mark.parametrize("on_disable", ["keep", "freeze"])
def test_the_plan_of_a_live_model_is_what_is_on(on_disable: str) -> None:
    fields: dict[str, Any] = {
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        "on_disable": on_disable,
    }
    model = adapted(tiny_llama(), **fields)
    rankwise.apply_(model, [rankwise.Disable("layers.0.q_proj"), rankwise.Disable("layers.1.v_proj")])
    made, paths = rankwise.plan(model), rankwise.named_paths(model).values()
    assert made.enabled == 64 + 48 == sum(path.num_parameters for path in paths if path.enabled)
    assert made.contributing == sum(path.num_parameters for path in paths if path.contributing)
    assert made.frozen == made.contributing - made.enabled == (112 if on_disable == "freeze" else 0)
    assert made.base == sum(p.numel() for p in tiny_llama().parameters())
    assert made.flops_per_token == 2 * made.contributing
    planned = rankwise.plan(tiny_llama(), config(**fields))
    assert (planned.resident, planned.head, planned.base) == (made.resident, made.head, made.base)


T5 = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)


@pytest.mark.parametrize(
    ("task_type", "of", "target", "head"),
    [
        ("FEATURE_EXTRACTION", bert_config(), "query", 0),
        pytest.param("TOKEN_CLS", bert_config(), "query", 34),
        pytest.param("QUESTION_ANS", bert_config(), "query", 34),
        pytest.param("SEQ_2_SEQ_LM", T5, "q", 0),
    ],
)
def test_a_plan_knows_the_heads_of_other_tasks(task_type: str, of: PreTrainedConfig, target: str, head: int) -> None:
    assert rankwise.plan(of, config(task_type=task_type, target_modules=[target], budget=0.5)).head == head


@pytest.mark.parametrize(
    ("of", "fields", "words"),
    [
        (bert_config(), None, "needs the HeteroLoraConfig to plan for"),
        (tiny_bert(), None, "BertForSequenceClassification has no rankwise paths"),
        (bert_config(), {"target_modules": ["q_proj"]}, "'q_proj', which matches no module.*linear layers are"),
        (nn.Linear(2, 2), {"target_modules": ["q_proj"]}, r"takes a transformers model or config.*got Linear"),
    ],
)
def test_what_cannot_be_planned_is_said(of: Any, fields: dict[str, Any] | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rankwise.plan(of, None if fields is None else config(**fields))


State = dict[str, Any]


def state_of(model: nn.Module) -> State:
    """Everything that planning must leave as found."""
    return {
        "types": [(name, type(module), module.training) for name, module in model.named_modules()],
        "trains": {name: p.requires_grad for name, p in model.named_parameters()},
        "grads": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "tensors": {name: value.clone() for name, value in model.state_dict().items()},
        "identities": [id(p) for p in model.parameters()],
        "rng": (torch.get_rng_state(), str(np.random.get_state())),  # noqa: NPY002
    }


def equal(first: Tensor | None, second: Tensor | None) -> bool:
    return first is second if first is None or second is None else torch.equal(first, second)


def same_state(model: nn.Module, before: State) -> None:
    after = state_of(model)
    for name in ("types", "trains", "identities"):
        assert after[name] == before[name], name
    for name in ("grads", "tensors"):
        assert list(after[name]) == list(before[name])
        assert all(equal(after[name][key], before[name][key]) for key in after[name]), name
    assert torch.equal(after["rng"][0], before["rng"][0])
    assert after["rng"][1] == before["rng"][1]


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
    before = state_of(model)
    planned = rankwise.plan_lora(
        model, class_batches(), proxy=proxy, target_modules=["query", "value"], task_type=task_type
    )
    same_state(model, before)
    assert len(planned.target_modules or ()) == 1


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
    before = state_of(model)
    with pytest.raises(error, match=words):
        rankwise.plan_lora(model, batches, **{"target_modules": ["query", "value"], **fields})
    same_state(model, before)


class Odd(nn.Module):
    """A linear layer before one that no path can run along."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Conv1d(2, 2, 1)


def test_a_target_refused_halfway_leaves_no_half_built_adapter() -> None:
    model = Odd()
    before = state_of(model)
    with pytest.raises(ValueError, match="'second', a Conv1d"):
        rankwise.plan_lora(model, [], proxy="constant", target_modules=["first", "second"])
    same_state(model, before)


def test_nothing_of_the_search_stays_on_the_model() -> None:
    model = tiny_bert()
    attributes, hooks = set(vars(model)), len(model._forward_pre_hooks)
    planned = rankwise.plan_lora(model, class_batches(), target_modules=["query", "value"], task_type="SEQ_CLS")
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
    planned = rankwise.plan_lora(model, batches, budget=0.5, lora_dropout=0.1, **fields)
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
    assert set(rankwise.named_paths(model)) == before
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=0)
