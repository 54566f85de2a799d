from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from rankwise.tasks.losses import (
    ChoiceCollator,
    choice_logits,
    choice_loss,
    first_logits,
    regression_loss,
    token_sums,
)


def test_choices_become_rows_in_order(bert_tokenizer: PreTrainedTokenizerBase) -> None:
    examples = [
        {"input_ids": [[1, 2], [3]], "attention_mask": [[1, 1], [1]], "labels": 1},
        {"input_ids": [[4], [5, 6, 7]], "attention_mask": [[1], [1, 1, 1]], "labels": 0},
    ]
    batch = ChoiceCollator(bert_tokenizer)(examples)
    assert batch["input_ids"].tolist() == [[1, 2, 0], [3, 0, 0], [4, 0, 0], [5, 6, 7]]
    assert batch["attention_mask"].sum(1).tolist() == [2, 1, 1, 3]
    assert batch["labels"].tolist() == [1, 0]
    assert "labels" not in ChoiceCollator(bert_tokenizer)([{"input_ids": [[1], [2]], "attention_mask": [[1], [1]]}])


@pytest.mark.parametrize("items", [None, 12, torch.tensor(12)])
def test_choice_loss_is_the_brute_force_one(items: int | torch.Tensor | None) -> None:
    logits = torch.randn(6, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([1, 0, 1])
    expected = 0.0
    for example, label in enumerate(labels.tolist()):
        scores = [float(logits[2 * example + choice].exp()) for choice in range(2)]
        expected -= float(torch.log(torch.tensor(scores[label] / sum(scores))))
    loss = choice_loss(SimpleNamespace(logits=logits), labels, num_items_in_batch=items)
    assert float(loss) == pytest.approx(expected / (3 if items is None else 12), rel=1e-5)
    assert torch.equal(choice_logits((logits, "hidden states"), labels), logits.reshape(3, 2))


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    logits, labels = torch.randn(8, 1), torch.rand(8) * 5
    for loss, targets in ((regression_loss, labels), (choice_loss, (labels[:4] > 2).long())):
        size = len(logits) // len(targets)
        whole = loss(SimpleNamespace(logits=logits), targets)
        parts = [
            loss(
                SimpleNamespace(logits=logits[part * size : (part + 1) * size]), targets[part : part + 1], len(targets)
            )
            for part in range(len(targets))
        ]
        torch.testing.assert_close(torch.stack(parts).sum(), whole)
    torch.testing.assert_close(
        regression_loss(SimpleNamespace(logits=logits), labels), torch.nn.functional.mse_loss(logits[:, 0], labels)
    )


def test_token_sums_are_the_brute_force_ones() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(1, 11, (3, 6))
    labels = ids.masked_fill(torch.tensor([[1, 1, 0, 0, 0, 0], [1, 0, 0, 1, 0, 1], [1, 1, 1, 1, 1, 1]]).bool(), -100)
    with torch.no_grad():
        logits = model(ids).logits
    probabilities = logits.double().softmax(-1)
    expected = torch.zeros(3, 2, dtype=torch.float64)
    for row in range(3):
        for position in range(1, 6):
            if labels[row, position] != -100:
                expected[row, 0] -= probabilities[row, position - 1, labels[row, position]].log()
                expected[row, 1] += 1
    torch.testing.assert_close(token_sums((logits, "cache"), labels).double(), expected, rtol=1e-5, atol=1e-6)
    assert expected[:, 1].tolist() == [4, 3, 0]


def test_first_logits_drops_what_else_the_model_returned() -> None:
    logits = torch.zeros(2, 3)
    assert first_logits(logits, None) is logits
    assert first_logits((logits, Path()), None) is logits
