"""``TaskData`` inside ``transformers.Trainer``, on tiny random models."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from rankwise.tasks import TASKS, DataSpec, TaskData, load_task

TINY: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def bert(data: TaskData) -> BertForSequenceClassification:
    torch.manual_seed(0)
    vocabulary = len(data.tokenizer)
    config = BertConfig(**TINY, vocab_size=vocabulary, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config.update(data.model_arguments())
    return BertForSequenceClassification(config)


def trainer(model: torch.nn.Module, data: TaskData, out: Path, **arguments: Any) -> Trainer:
    fixed: dict[str, Any] = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "seed": 0}
    return Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(out), **fixed | arguments),
        train_dataset=data.train,
        eval_dataset=data.validation,
        **data.trainer_arguments(),
    )


def rows_of(split: Dataset | None) -> list[dict[str, Any]]:
    assert split is not None
    return [split[number] for number in range(len(split))]


@pytest.fixture
def copa(write_task: Any, bert_tokenizer: PreTrainedTokenizerBase) -> TaskData:
    rows = [
        {
            "premise": f"it is {number}",
            "question": ("cause", "effect")[number % 2],
            "choice1": "yes it was so",
            "choice2": "no",
        }
        | {"label": number % 2}
        for number in range(20)
    ]
    return load_task(
        DataSpec(task="copa", data_dir=write_task("copa", train=rows, validation=rows[:7])), bert_tokenizer
    )


@pytest.fixture
def stsb(write_task: Any, bert_tokenizer: PreTrainedTokenizerBase) -> TaskData:
    rows = [{"sentence1": "one", "sentence2": f"number {number}", "label": number / 4} for number in range(20)]
    return load_task(
        DataSpec(task="stsb", data_dir=write_task("stsb", train=rows, validation=rows[:7])), bert_tokenizer
    )


def test_choices_train_and_their_evaluation_is_the_brute_force_one(copa: TaskData, tmp_path: Path) -> None:
    model = bert(copa)
    assert model.config.num_labels == 1
    run = trainer(model, copa, tmp_path, per_device_eval_batch_size=3, num_train_epochs=2)
    before = model.classifier.weight.clone()
    run.train()
    assert not torch.equal(before, model.classifier.weight)
    with torch.no_grad():
        model.classifier.weight.mul_(100)  # so that the scores of two choices are far apart
    got = run.evaluate()
    losses, right = [], []
    for row in rows_of(copa.validation):
        choices = [{name: torch.tensor([row[name][choice]]) for name in row if name != "labels"} for choice in (0, 1)]
        with torch.no_grad():
            scores = torch.cat([model(**choice).logits[0] for choice in choices])
        losses.append(-float(scores.log_softmax(0)[row["labels"]]))
        right.append(int(scores.argmax()) == row["labels"])
    assert got["eval_accuracy"] == pytest.approx(sum(right) / 7)
    assert got["eval_loss"] == pytest.approx(sum(losses) / 7, rel=1e-4)


@pytest.mark.parametrize("name", ["copa", "stsb"])
def test_accumulation_gives_the_gradient_of_the_whole_batch(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    data: TaskData = request.getfixturevalue(name)
    weights = []
    for accumulation in (1, 4):
        model = bert(data)
        fixed = {
            "optim": "sgd",
            "learning_rate": 0.1,
            "max_grad_norm": 0.0,
            "max_steps": 1,
            "lr_scheduler_type": "constant",
        }
        size = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
        trainer(model, data, tmp_path, **fixed, **size).train()
        weights.append(model.classifier.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["copa", "stsb"])
def test_the_loss_of_a_batch_is_trainers_and_leaves_the_batch(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    data: TaskData = request.getfixturevalue(name)
    model = bert(data)
    batch = data.collator(rows_of(data.validation)[:4])
    names = set(batch)
    ours = data.loss(model, batch)
    assert set(batch) == names
    torch.testing.assert_close(ours, trainer(model, data, tmp_path).compute_loss(model, dict(batch)))


@pytest.mark.parametrize("batch_size", [1, 2, 7])
@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_perplexity_is_weighted_by_tokens_whatever_the_batches(
    batch_size: int, padding_side: str, tmp_path: Path, llama_tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer = copy.deepcopy(llama_tokenizer)
    tokenizer.padding_side = padding_side
    answers = ["Yes.", "No, that is not how it was told to me at all.", "Perhaps.", "Once upon a time there was a fox."]
    lines = [
        f'{{"instruction": "Answer {number}.", "input": null, "output": "{answers[number % 4]}"}}'
        for number in range(9)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    file = tmp_path / "a.jsonl"
    data = load_task(DataSpec(task="instruction", train_file=file, validation_file=file), tokenizer)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TINY, vocab_size=len(tokenizer), **data.model_arguments())).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # so that losses differ between sequences
    losses = []
    for row in rows_of(data.validation):
        with torch.no_grad():
            log_probabilities = model(torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
        labels = row["labels"]
        losses += [-float(log_probabilities[at - 1, labels[at]]) for at in range(1, len(labels)) if labels[at] != -100]
    expected = sum(losses) / len(losses)
    run = trainer(model, data, tmp_path, per_device_eval_batch_size=batch_size)
    got = run.evaluate()
    assert got["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert got["eval_perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    predicted = run.predict(data.validation)  # type: ignore[arg-type]
    assert predicted.predictions.shape == (9, 2)  # type: ignore[union-attr]
    assert predicted.predictions[:, 1].sum() == len(losses)  # type: ignore[call-overload]


def test_a_llama_classifier_pads_with_the_end_of_sequence(
    write_task: Any, tmp_path: Path, llama_tokenizer: PreTrainedTokenizerBase
) -> None:
    bare = copy.deepcopy(llama_tokenizer)
    bare.pad_token = None
    rows = [{"sentence": "so " * (1 + number % 5), "label": number % 2} for number in range(20)]
    data = load_task(DataSpec(task="cola", data_dir=write_task("cola", train=rows, validation=rows)), bare)
    assert data.model_arguments()["pad_token_id"] == bare.eos_token_id
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**TINY, vocab_size=len(bare), **data.model_arguments())).eval()
    batch = data.collator(rows_of(data.validation)[:5])
    with torch.no_grad():
        together = model(**batch).logits
        alone = torch.cat([model(torch.tensor([row["input_ids"]])).logits for row in rows_of(data.validation)[:5]])
    torch.testing.assert_close(together, alone)
    got = trainer(model, data, tmp_path).evaluate()
    assert set(TASKS["cola"].metrics) == {"matthews"}
    assert "eval_matthews" in got


def test_what_a_run_asks_about_a_task(copa: TaskData, stsb: TaskData) -> None:
    assert (copa.task_type, copa.num_labels, copa.headline, copa.greater_is_better) == ("SEQ_CLS", 1, "accuracy", True)
    assert (stsb.num_labels, stsb.problem_type, stsb.headline) == (1, "regression", "pearson")
    assert copa.model_arguments() == {"pad_token_id": 0, "num_labels": 1, "problem_type": None}
