"""What is a model's head: no path runs along it, a plan has it trained, and what would stay random is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.families import distilbert_config
from tests.models import VOCABULARY, Batch, build, tiny_bert, tiny_llama
from torch import nn
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

import rankwise
from rankwise.method.heads import forgotten_heads, head_of
from rankwise.method.targets import all_linear, module_names
from rankwise.method.unused import unused
from rankwise.planning.head_warmup import head_parameters_of

END = 2  # BART and T5 read their last token that ends a text


SIZES: dict[str, dict[str, Any]] = {
    "bart": {"d_model": 16, "max_position_embeddings": 16}
    | {f"{side}_layers": 1 for side in ("encoder", "decoder")}
    | {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    | {f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0},
    "deberta": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24},
}


def bart() -> Any:
    return build(BartForSequenceClassification, BartConfig(vocab_size=VOCABULARY, **SIZES["bart"]))


def t5() -> Any:
    return build(T5ForSequenceClassification, T5Config(vocab_size=VOCABULARY, eos_token_id=END, **SIZES["t5"]))


def distilbert() -> Any:
    return build(DistilBertForSequenceClassification, distilbert_config(1))


def deberta() -> Any:
    return build(DebertaV2ForSequenceClassification, DebertaV2Config(vocab_size=VOCABULARY, **SIZES["deberta"]))


OTHER_HEADS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "bart": (bart, ["classification_head"]),
    "t5": (t5, ["classification_head"]),
    "distilbert": (distilbert, ["pre_classifier"]),
    "deberta": (deberta, ["pooler"]),
}
each_other = pytest.mark.parametrize(("make", "others"), OTHER_HEADS.values(), ids=OTHER_HEADS)


def ended_batches(rows: int, count: int) -> list[Batch]:
    draws = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        ids = torch.randint(3, VOCABULARY, (rows, 6), generator=draws)
        ids[:, -1] = END
        batches.append({"input_ids": ids, "labels": ids[:, 0] % 2})
    return batches


def test_a_head_is_a_child_with_a_usual_name() -> None:
    assert list(head_of(tiny_bert())) == ["classifier"]
    assert head_of(tiny_llama()) == {}
    model = nn.ModuleDict({"score": nn.Linear(2, 2), "qa_outputs": nn.Linear(2, 2), "body": nn.Linear(2, 2)})
    assert list(head_of(model)) == ["score", "qa_outputs"]


def test_a_pooler_without_a_classifier_is_part_of_the_network() -> None:
    assert head_of(tiny_bert().bert) == {}
    assert forgotten_heads(["encoder", "pooler", "pooler.dense"]) == []
    assert forgotten_heads(["bert.pooler", "classifier"]) == []


@each_other
def test_a_head_under_another_name_is_no_candidate_and_is_trained_first(make: Any, others: list[str]) -> None:
    model = make()
    assert set(others) <= set(head_of(model))
    assert forgotten_heads(module_names(model)) == others
    assert not [name for name in all_linear(model) if name.split(".")[0] in head_of(model)]
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {own[id(parameter)].split(".")[0] for parameter in head_parameters_of(model)} == set(head_of(model))


@each_other
def test_a_plan_has_the_whole_head_trained_and_saved(make: Any, others: list[str], tmp_path: Path) -> None:
    batches = ended_batches(8, 8)
    plan = rankwise.rank_plan(make(), batches, budget=400)
    assert plan.heads == tuple(others)
    assert rankwise.RankPlan.from_dict(plan.to_dict()).heads == plan.heads
    config = plan.to_lora_config(task_type="SEQ_CLS")
    assert set(others) <= set(config.modules_to_save or ())
    model = get_peft_model(make(), config)
    heads = [p for name, p in model.named_parameters() if p.requires_grad and "modules_to_save" in name]
    with torch.no_grad():
        for parameter in heads:
            parameter.add_(0.1)
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(make(), str(tmp_path)).eval()
    with torch.no_grad():
        assert torch.equal(again(**batches[0]).logits, model.eval()(**batches[0]).logits)
    mine = plan.to_lora_config(task_type="SEQ_CLS", modules_to_save=["classifier"])
    assert mine.modules_to_save == ["classifier"]


@each_other
def test_a_plan_by_whole_paths_has_it_trained_too(make: Any, others: list[str]) -> None:
    config = rankwise.plan_lora(
        make(), ended_batches(4, 2), budget=0.5, granularity="path", target_modules="all-linear"
    )
    assert config.modules_to_save == others


@each_other
def test_a_head_that_would_stay_random_is_told(make: Any, others: list[str]) -> None:
    config = rankwise.HeteroLoraConfig(task_type="SEQ_CLS", target_modules="all-linear", r=2, mode="off")
    with pytest.warns(UserWarning, match=rf"{others[0]} belongs to the model's head, .* modules_to_save="):
        model = get_peft_model(make(), config)
    assert not [name for name in model.targeted_module_names if name.split(".")[0] in others]


@each_other
def test_a_head_that_trains_is_not_told(make: Any, others: list[str]) -> None:
    modules = module_names(make())
    saved = LoraConfig(task_type="SEQ_CLS", modules_to_save=others)
    assert unused(saved, modules, ["fc1"]) == []
    assert len(unused(LoraConfig(task_type="SEQ_CLS"), modules, ["fc1"])) == 1
    assert unused(LoraConfig(task_type="SEQ_CLS"), modules, [f"{name}.dense" for name in others]) == []
    assert unused(LoraConfig(task_type="FEATURE_EXTRACTION"), modules, ["fc1"]) == []


def test_where_the_head_is_frozen_beside_an_adapter_it_is_not_trained_first() -> None:
    with pytest.warns(UserWarning, match="classification_head belongs to the model's head"):
        frozen = get_peft_model(bart(), rankwise.HeteroLoraConfig(task_type="SEQ_CLS", r=2, mode="off"))
    assert head_parameters_of(frozen) == []
    config = rankwise.HeteroLoraConfig(task_type="SEQ_CLS", r=2, mode="off", modules_to_save=["classification_head"])
    trained = head_parameters_of(get_peft_model(bart(), config))
    assert len(trained) == 4
    assert all(parameter.requires_grad for parameter in trained)


def test_pefts_own_lora_stays_as_it_was_where_it_knows_the_head() -> None:
    plan = rankwise.rank_plan(tiny_bert(), ended_batches(8, 8), budget=200)
    assert plan.to_lora_config().modules_to_save is None
    plain = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", r=2)
    ours = rankwise.HeteroLoraConfig(task_type="SEQ_CLS", target_modules="all-linear", r=2, mode="off")
    names = [sorted(get_peft_model(tiny_bert(), config).targeted_module_names) for config in (plain, ours)]
    assert names[0] == names[1]
