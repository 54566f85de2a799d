"""What is a model's head: no path runs along it, a plan has it trained, and what would stay random is told."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.families import distilbert_config, modernbert_config, roberta_config
from tests.models import VOCABULARY, Batch, build, tiny_bert, tiny_llama
from torch import nn
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertForSequenceClassification,
    EuroBertConfig,
    EuroBertForSequenceClassification,
    ModernBertForQuestionAnswering,
    RobertaForSequenceClassification,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    T5Config,
    T5ForSequenceClassification,
)

import rankwise
from rankwise.method.heads import forgotten_heads, head_of
from rankwise.method.targets import all_linear
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
SIZES["eurobert"] = SIZES["deberta"] | {"num_key_value_heads": 2, "mask_token_id": 3}
SIZES["eurobert"] |= {"bos_token_id": 1, "eos_token_id": END, "pad_token_id": 0}


def bart() -> Any:
    return build(BartForSequenceClassification, BartConfig(vocab_size=VOCABULARY, **SIZES["bart"]))


def t5() -> Any:
    return build(T5ForSequenceClassification, T5Config(vocab_size=VOCABULARY, eos_token_id=END, **SIZES["t5"]))


def distilbert() -> Any:
    return build(DistilBertForSequenceClassification, distilbert_config(1))


def deberta() -> Any:
    return build(DebertaV2ForSequenceClassification, DebertaV2Config(vocab_size=VOCABULARY, **SIZES["deberta"]))


def eurobert() -> Any:
    return build(EuroBertForSequenceClassification, EuroBertConfig(vocab_size=VOCABULARY, **SIZES["eurobert"]))


HEADED: dict[str, tuple[Callable[[], Any], list[str], list[str]]] = {  # the whole head; what PEFT forgets of it
    "bart": (bart, ["classification_head"], ["classification_head"]),
    "t5": (t5, ["classification_head"], ["classification_head"]),
    "distilbert": (distilbert, ["pre_classifier", "classifier"], []),  # PEFT takes what ends in "classifier"
    "deberta": (deberta, ["pooler", "classifier"], ["pooler"]),
    "eurobert": (eurobert, ["dense", "classifier"], ["dense"]),
}
each_head = pytest.mark.parametrize(("make", "head", "forgotten"), HEADED.values(), ids=HEADED)


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


def test_what_peft_would_take_more_for_is_not_asked_for() -> None:
    """``modules_to_save=["pooler"]`` would train the encoder's too."""
    model = nn.ModuleDict({"encoder": tiny_bert().bert, "pooler": nn.Linear(2, 2), "classifier": nn.Linear(2, 2)})
    assert forgotten_heads(model) == []


@each_head
def test_a_head_under_another_name_is_no_candidate_and_is_trained_first(
    make: Any, head: list[str], forgotten: list[str]
) -> None:
    model = make()
    assert list(head_of(model)) == head
    assert forgotten_heads(model) == forgotten
    assert forgotten_heads(model, saved=head) == []
    assert not [name for name in all_linear(model) if name.split(".")[0] in head]
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {own[id(parameter)].split(".")[0] for parameter in head_parameters_of(model)} == set(head)


@each_head
def test_a_plan_has_the_whole_head_trained_and_saved(
    make: Any, head: list[str], forgotten: list[str], tmp_path: Path
) -> None:
    batches = ended_batches(8, 8)
    plan = rankwise.rank_plan(make(), batches, budget=400)
    assert plan.heads == tuple(forgotten)
    assert rankwise.RankPlan.from_dict(plan.to_dict()).heads == plan.heads
    model = get_peft_model(make(), plan.to_lora_config(task_type="SEQ_CLS"))
    own = {name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_" not in name}
    assert {name.removeprefix("base_model.model.").split(".")[0] for name in own} == set(head)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in own:
                parameter.add_(0.1)
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(make(), str(tmp_path)).eval()
    with torch.no_grad():
        assert torch.equal(again(**batches[0]).logits, model.eval()(**batches[0]).logits)
    mine = plan.to_lora_config(task_type="SEQ_CLS", modules_to_save=["classifier"])
    assert mine.modules_to_save == ["classifier"]


@each_head
def test_a_plan_by_whole_paths_has_it_trained_too(make: Any, head: list[str], forgotten: list[str]) -> None:
    config = rankwise.plan_lora(
        make(), ended_batches(4, 2), budget=0.5, granularity="path", target_modules="all-linear"
    )
    assert config.modules_to_save == (forgotten or None)


def test_what_lora_is_to_be_on_is_not_saved_as_a_whole_too() -> None:
    """PEFT would put none on it, without a word, and what a plan gave it would be lost."""
    plan = rankwise.rank_plan(bart(), ended_batches(8, 8), budget=400, target_modules=["v_proj", "out_proj"])
    assert any("classification_head" in name for name in plan.modules.values())
    assert plan.heads == ()
    model = get_peft_model(bart(), plan.to_lora_config(task_type="SEQ_CLS"))
    built = [parameter.numel() for name, parameter in model.named_parameters() if "lora_" in name]
    assert sum(built) == plan.spent


@each_head
def test_a_head_that_would_stay_random_is_told(make: Any, head: list[str], forgotten: list[str]) -> None:
    config = rankwise.HeteroLoraConfig(task_type="SEQ_CLS", target_modules="all-linear", r=2, mode="off")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = get_peft_model(make(), config)
    told = [str(each.message) for each in caught if "belongs to the model's head" in str(each.message)]
    assert told == [words for name in forgotten for words in told if words.startswith(name)]
    assert len(told) == len(forgotten)
    assert not [name for name in model.targeted_module_names if name.split(".")[0] in head]


def test_a_head_that_trains_or_is_only_loaded_is_not_told(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"task_type": "SEQ_CLS", "target_modules": ["fc1"], "r": 1, "mode": "off"}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*belongs to the model's head")
        warnings.filterwarnings("error", message="modules_to_save names")
        for named in ("classification_head", "model.classification_head", "head"):  # as PEFT matches them
            get_peft_model(bart(), rankwise.HeteroLoraConfig(modules_to_save=[named], **fields))
        get_peft_model(bart(), rankwise.HeteroLoraConfig(**{**fields, "task_type": None}))
    with pytest.warns(UserWarning, match="belongs to the model's head"):
        model = get_peft_model(bart(), rankwise.HeteroLoraConfig(**fields))
    model.save_pretrained(str(tmp_path))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*belongs to the model's head")
        PeftModel.from_pretrained(bart(), str(tmp_path))


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


class Wrapped(nn.Module):
    """A user's own module around a model of transformers."""

    def __init__(self, make: Callable[[], Any] = tiny_bert) -> None:
        super().__init__()
        self.net = make()
        self.config = self.net.config

    def forward(self, **inputs: Any) -> Any:
        return self.net(**inputs)


@pytest.mark.parametrize(("make", "head"), [(tiny_bert, ["net.classifier"]), (bart, ["net.classification_head"])])
def test_a_head_in_the_users_own_module_is_one_too(make: Any, head: list[str]) -> None:
    model = Wrapped(make)
    assert list(head_of(model)) == head
    assert not [name for name in all_linear(model) if "classif" in name]
    plan = rankwise.rank_plan(model, ended_batches(8, 8), budget=300)
    adapted = get_peft_model(Wrapped(make), plan.to_lora_config(task_type="SEQ_CLS"))
    assert sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name) == plan.spent
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad and "lora_" not in name}
    assert trained
    assert all(head[0] in name for name in trained)


def test_a_router_of_experts_is_no_head() -> None:
    config = SwitchTransformersConfig(
        vocab_size=VOCABULARY, **SIZES["t5"], num_decoder_layers=1, num_experts=2, num_sparse_encoder_layers=1
    )
    model = build(SwitchTransformersForConditionalGeneration, config)
    assert [name for name, _ in model.named_modules() if name.endswith("router.classifier")]
    assert head_of(model) == {}
    assert head_parameters_of(model) == []


def test_what_lies_deep_in_the_users_own_module_is_no_head() -> None:
    expert = nn.ModuleDict({"classifier": nn.Linear(2, 2), "dense": nn.Linear(2, 2)})
    assert head_of(nn.ModuleDict({"expert": expert})) == {}
    assert list(head_of(expert)) == ["classifier", "dense"]
    net = nn.ModuleDict({"encoder": tiny_bert().bert, "classifier": nn.Linear(2, 2), "block": expert})
    assert list(head_of(nn.ModuleDict({"net": net}))) == ["net.classifier"]


def test_a_head_for_answers_under_a_classifiers_name_is_told_and_trained() -> None:
    """With QUESTION_ANS PEFT trains ``qa_outputs`` alone."""
    model = build(ModernBertForQuestionAnswering, modernbert_config(1))
    for asked, head in ((model, "classifier"), (Wrapped(lambda: model), "net.classifier")):
        assert list(head_of(asked)) == forgotten_heads(asked) == [head]
    config = rankwise.HeteroLoraConfig(task_type="QUESTION_ANS", target_modules="all-linear", r=2, mode="off")
    with pytest.warns(UserWarning, match=r"classifier belongs to the model's head.*modules_to_save=\['classifier'\]"):
        get_peft_model(model, config)
    assert forgotten_heads(tiny_bert()) == []


def roberta() -> Any:
    return build(RobertaForSequenceClassification, roberta_config(1))


INSIDE = ["query", "value", "dense"]  # RoBERTa's head has a dense, too


def test_what_lies_in_a_head_that_trains_as_a_whole_gets_no_rank() -> None:
    batches = ended_batches(8, 8)
    plan = rankwise.rank_plan(roberta(), batches, budget=400, target_modules=INSIDE)
    by_path = rankwise.plan_lora(
        roberta(), batches, budget=0.9, r=2, target_modules=INSIDE, task_type="SEQ_CLS", granularity="path"
    )
    assert any(name.endswith("output.dense") for name in plan.modules.values())
    model = get_peft_model(roberta(), plan.to_lora_config(task_type="SEQ_CLS"))
    assert sum(p.numel() for name, p in model.named_parameters() if "lora_" in name) == plan.spent
    assert by_path.exclude_modules is None
    by_name = set(by_path.target_modules or ())
    whole = get_peft_model(roberta(), by_path)
    assert set(whole.targeted_module_names) == by_name
    assert not [name for name in by_name if "classifier" in name]


@pytest.mark.parametrize(
    ("targets", "fields", "lost"),
    [
        (["query", "classifier"], {"task_type": "SEQ_CLS"}, "classifier"),
        (["query", "dense"], {"task_type": "SEQ_CLS", "modules_to_save": ["pooler"]}, r"bert\.pooler\.dense"),
    ],
)
def test_a_rank_for_what_trains_as_a_whole_is_refused(targets: list[str], fields: dict[str, Any], lost: str) -> None:
    """PEFT would put no LoRA there, and say nothing."""
    plan = rankwise.rank_plan(tiny_bert(), ended_batches(8, 8), budget=800, target_modules=targets)
    with pytest.raises(
        ValueError, match=rf"the plan gives ranks to {lost}, which task_type='SEQ_CLS' and modules_to_s"
    ):
        plan.to_lora_config(**fields)
    get_peft_model(tiny_bert(), plan.to_lora_config())
    if lost == "classifier":
        with pytest.raises(ValueError, match="the plan gives ranks to classifier"):
            rankwise.plan_lora(
                tiny_bert(), ended_batches(8, 8), budget=0.99, granularity="path", target_modules=targets, **fields
            )


def test_the_users_list_of_what_trains_stays_the_users() -> None:
    saved = ["pooler"]
    plan = rankwise.rank_plan(tiny_bert(), ended_batches(8, 8), budget=200, target_modules=["query", "value"])
    get_peft_model(tiny_bert(), plan.to_lora_config(task_type="SEQ_CLS", modules_to_save=saved))
    assert saved == ["pooler"]
