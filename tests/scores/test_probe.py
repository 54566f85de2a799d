"""A probe leaves no trace, whatever happens inside it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from tests.models import adapted, class_batches, tiny_bert, tiny_llama, tokens
from tests.search.test_callback import searched_at, searching, trainer
from tests.search.test_trainer import FIELDS
from tests.traces import assert_same, snapshot
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import rankwise
from rankwise.paths.path_set import path_set
from rankwise.scores.batches import to_device
from rankwise.scores.probe import untouched


@pytest.fixture
def model() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
        )
        base = BertForSequenceClassification(config)
        base.register_buffer("running", torch.zeros(2))
    adapter = rankwise.HeteroLoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], mode="dynamic")
    return get_peft_model(base, adapter)


def batch() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(1, 9).reshape(2, 4), "labels": torch.tensor([0, 1])}


class Broken(RuntimeError):
    """The user's own error."""


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("proxy", ["grad_norm", "snip", "synflow", "newton"])
def test_nothing_is_left_behind(model: Any, proxy: str, mode: str, fails: bool) -> None:
    model.train()
    model.base_model.model.bert.encoder.layer[0].eval()
    model(**batch()).loss.backward()  # gradients of a step under way

    def loss_that_touches_everything(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        torch.rand(3), random.random(), np.random.random()  # noqa: NPY002
        model.base_model.model.running += 1
        loss = model(**batch).loss
        if fails:
            raise Broken
        return loss

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        for _ in range(3):
            torch.rand(1)
            yield batch()

    before = snapshot(model)
    options: dict[str, Any] = {"proxy": proxy, "mode": mode, "synflow_loss": "loss"}
    if fails:
        with pytest.raises(Broken):
            rankwise.score_paths(model, batches(), compute_loss=loss_that_touches_everything, **options)
    else:
        rankwise.score_paths(model, batches(), compute_loss=loss_that_touches_everything, **options)
    assert_same(before, snapshot(model))


def test_scoring_with_dropout_does_not_start_a_search(model: Any) -> None:
    rankwise.score_paths(model, [batch()], mode="train")
    assert path_set(model).session.listener is None


def test_a_probe_inside_a_window_keeps_the_window(model: Any) -> None:
    """A second search's probe must not swallow what the first has collected."""
    paths = path_set(model)
    marker = object()
    paths.session.recorder = marker  # type: ignore[assignment]
    rankwise.score_paths(model, [batch()])
    assert paths.session.recorder is marker


def test_no_batches_and_no_labels_are_errors_that_say_so(model: Any) -> None:
    with pytest.raises(ValueError, match="needs training batches, got none"):
        rankwise.score_paths(model, [])
    with pytest.raises(ValueError, match="add labels, or pass compute_loss"):
        rankwise.score_paths(model, [{"input_ids": batch()["input_ids"]}])


def test_unknown_words_name_the_nearest(model: Any) -> None:
    with pytest.raises(ValueError, match=r"proxy='gradnorm' is not one of .* did you mean 'grad_norm'"):
        rankwise.score_paths(model, [batch()], proxy="gradnorm")
    with pytest.raises(ValueError, match="score_on='weights'"):
        rankwise.score_paths(model, [batch()], score_on="weights")


def test_scores_are_the_same_in_bfloat16_autocast_up_to_its_precision(model: Any) -> None:
    exact = rankwise.score_paths(model, [batch()])
    half = rankwise.score_paths(model, [batch()], autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    assert half == pytest.approx(exact, rel=0.1)


def test_reentrant_checkpointing_does_not_hide_paths_from_a_probe_with_dropout(model: Any) -> None:
    plain = rankwise.score_paths(model, [batch()], mode="train")
    model.activation_checkpointing_enable({"use_reentrant": True})
    functions = [module.__dict__.get("_gradient_checkpointing_func") for module in model.modules()]
    assert rankwise.score_paths(model, [batch()], mode="train").keys() == plain.keys()
    assert all(np.isfinite(list(rankwise.score_paths(model, [batch()], mode="train").values())))
    assert functions == [module.__dict__.get("_gradient_checkpointing_func") for module in model.modules()]


def test_synflow_of_an_encoder_and_a_decoder() -> None:
    from tests.models import adapted, build
    from transformers.models.t5 import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    model = adapted(build(T5ForConditionalGeneration, config), task_type="SEQ_2_SEQ_LM", target_modules=["q", "v"])
    scores = rankwise.score_paths(model, proxy="synflow")
    assert len(scores) == 12
    assert all(np.isfinite(list(scores.values())))


class Plain(nn.Module):
    """Returns what it is told: a tuple, a dictionary."""

    def __init__(self, inner: nn.Module, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = inner, kind

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        found = self.inner(input_ids=input_ids, labels=labels)
        return (found.loss, found.logits) if self.kind == "tuple" else {"loss": found.loss, "logits": found.logits}


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_models_return_what_they_like(kind: str, tmp_path: Path) -> None:
    """A probe takes the loss as Trainer does, whatever it comes in; synflow the logits."""
    inner = searching(**FIELDS)
    run = trainer(Plain(inner, kind), tmp_path)
    run.train()
    assert searched_at(inner)[0] == (0, "probe")
    one, other = (rankwise.score_paths(model, class_batches(1)) for model in (inner, Plain(inner, kind)))
    assert one == other


def test_a_model_told_to_return_tuples(tmp_path: Path) -> None:
    model = searching(**FIELDS)
    config: Any = model.get_base_model().config
    config.return_dict = False
    trainer(model, tmp_path).train()
    assert searched_at(model)[0] == (0, "probe")
    scores = rankwise.score_paths(model, proxy="synflow")
    config.return_dict = True
    assert scores == rankwise.score_paths(model, proxy="synflow")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"input_ids": [[1, 2], [3, 4]], "labels": [0, 1]}, "its input_ids is a list"),
        ({"input_ids": torch.arange(4), "labels": torch.tensor(1)}, "its input_ids have one dimension"),
        ({"input_ids": torch.ones(1, 4).long(), "labels": 1}, "its labels is a int"),
    ],
)
def test_a_row_of_a_dataset_is_told_from_a_batch(model: Any, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"{words}, as of a row of a dataset: give batches"):
        rankwise.score_paths(model, [given])


def test_a_batch_may_hold_lists_of_what_is_no_number(model: Any) -> None:
    """As models that find objects take their labels."""
    boxes = [{"boxes": torch.ones(2, 4)}, {"boxes": torch.ones(1, 4)}]
    assert to_device({**batch(), "labels": boxes}, model)["labels"][0]["boxes"].shape == (2, 4)


def test_a_model_without_weights_is_told() -> None:
    with torch.device("meta"):
        base = BertForSequenceClassification(BertConfig(vocab_size=50, hidden_size=16, num_attention_heads=2))
    hollow = get_peft_model(
        base, rankwise.HeteroLoraConfig(target_modules=["query"], mode="dynamic"), low_cpu_mem_usage=True
    )
    with pytest.raises(ValueError, match="is on the meta device, so it has no weights to compute with"):
        rankwise.score_paths(hollow, [batch()])


@pytest.mark.parametrize("proxy", ["grad_norm", "snip", "synflow", "newton"])
def test_an_adapter_that_no_forward_pass_runs_through_is_told(model: Any, proxy: str) -> None:
    options: dict[str, Any] = {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query", "value"], "mode": "off"}
    model.add_adapter("other", rankwise.HeteroLoraConfig(**options))
    given: dict[str, Any] = {"batches": [batch(), batch()], "proxy": proxy}
    with pytest.raises(ValueError, match=r"'other' is not the active one: call model\.set_adapter\('other'\) before"):
        rankwise.score_paths(model, adapter="other", **given)
    with pytest.raises(ValueError, match="'default' is disabled: score its paths outside"), model.disable_adapter():
        rankwise.score_paths(model, **given)
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"'default' is merged into the base: call model\.unmerge_adapter"):
        rankwise.score_paths(model, **given)
    model.unmerge_adapter()
    assert rankwise.score_paths(model, **given)


@pytest.mark.parametrize("inside", [True, False])
def test_inference_mode_is_named(inside: bool) -> None:
    with torch.inference_mode():
        made = tiny_bert()
    model = tiny_bert() if inside else made
    words = "called inside of it" if inside else "was made inside of it"
    with torch.inference_mode(inside), pytest.raises(ValueError, match=rf"inference_mode\(\) .*{words}"):
        rankwise.rank_plan(model, class_batches(6), budget=300)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"inference_mode\(\)"):
        rankwise.score_paths(adapted(tiny_bert(), task_type="SEQ_CLS"), class_batches())


def test_where_tensors_are_made_by_default_changes_no_draw() -> None:
    """A generator of the CPU draws nothing on another device, which one without values stands for here."""
    model = adapted(tiny_bert(), task_type="SEQ_CLS", target_modules=["query", "value"], mode="static")
    data = class_batches(4)
    wanted = rankwise.score_paths(model, data, proxy="newton")
    torch.set_default_device("meta")
    try:
        assert rankwise.score_paths(model, data, proxy="newton") == wanted
    finally:
        torch.set_default_device(None)


def test_what_a_pass_writes_to_configs_is_put_back_and_none_keeps_keys() -> None:
    """The text part of a model that sees images has a config of its own."""
    text: Any = tiny_llama()
    classifier: Any = tiny_bert()
    whole = nn.Module()
    whole.text, whole.classifier = text, classifier
    assert (text.config.use_cache, classifier.config.problem_type) == (True, None)
    before = text.config.to_dict(), classifier.config.to_dict()

    def used() -> None:
        with untouched(whole):
            assert text.config.use_cache is text.model.config.use_cache is False
            assert text(tokens()).past_key_values is None
            classifier(**batch())
            assert classifier.config.problem_type == "single_label_classification"
            raise Broken

    with pytest.raises(Broken):
        used()
    assert (text.config.to_dict(), classifier.config.to_dict()) == before


def test_rows_that_are_packed_without_a_mask_do_not_see_each_other() -> None:
    """transformers tells them by positions that begin anew, where no keys are kept; a plan scored them as one row."""
    one, other = tokens(2, 5)
    labels = [torch.cat([torch.tensor([-100]), row[1:]]) for row in (one, other)]
    packed = {
        "input_ids": torch.cat([one, other])[None],
        "labels": torch.cat(labels)[None],
        "position_ids": torch.arange(5).repeat(2)[None],
    }
    apart = {"input_ids": torch.stack([one, other]), "labels": torch.stack(labels)}
    found = []
    for each in (packed, apart):
        model = adapted(tiny_llama(), target_modules=["q_proj", "v_proj"])
        found.append(rankwise.score_paths(model, [each]))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
