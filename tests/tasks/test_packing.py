"""Rows packed into one sequence: whole, in order, and blind to each other."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.models import VOCABULARY, tiny_llama
from tests.tasks.test_chat import load
from transformers import PreTrainedTokenizerBase

from rankwise.runs.dryrun import tiny_tokenizer
from rankwise.tasks import IGNORED
from rankwise.tasks.encode import Encoded
from rankwise.tasks.packing import LENGTHS, PackedCollator, check_packing, pack

Row = dict[str, Any]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


def test_packed_rows_learn_what_they_learn_alone(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    rows = [{"prompt": "bar " * n, "completion": "dot dun " * n} for n in (1, 2, 3, 1)]
    alone = load(tmp_path, tokenizer, *rows, max_length=24)
    packed = load(tmp_path, tokenizer, *rows, max_length=24, packing=True)
    assert packed.packed
    assert len(packed.train) < len(alone.train)
    assert sorted(chain(*packed.train["input_ids"])) == sorted(chain(*alone.train["input_ids"]))
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).double().eval()
    model.config.use_cache = False
    check_packing(model, len(tokenizer))

    def gradient(data: Any) -> torch.Tensor:
        model.zero_grad()
        batch = data.collator([data.train[row] for row in range(len(data.train))])
        tokens = (batch["labels"] != IGNORED).sum()
        model(**batch, num_items_in_batch=tokens).loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    torch.testing.assert_close(gradient(packed), gradient(alone), rtol=1e-9, atol=1e-12)


def test_a_model_whose_packed_rows_see_each_other_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=60, hidden_size=16, n_layer=1, n_head=2, initializer_range=0.5))
    with pytest.raises(ValueError, match=r"data\.packing"):
        check_packing(model, 60)


def encoded(*lengths: int) -> Encoded:
    """Rows of these lengths whose tokens tell the row and the place: the third row begins 200, 201."""
    ids = [[100 * number + place for place in range(length)] for number, length in enumerate(lengths)]
    labels = [[IGNORED, *row[1:]] for row in ids]
    mask = [[1] * length for length in lengths]
    rows = Dataset.from_dict({"input_ids": ids, "labels": labels, "attention_mask": mask})
    return Encoded(rows, truncated=3, dropped=2, cut_answers=1)


@pytest.mark.parametrize("lengths", [(3, 5, 2, 4, 1, 5), (5,), (5, 5, 5), (1, 1, 1, 1, 1, 1)])
def test_every_row_is_in_one_sequence_whole(lengths: tuple[int, ...]) -> None:
    packed = pack(encoded(*lengths), 5)
    assert packed[1:] == (3, 2, 1)  # what was counted before stays
    assert len(packed.rows) == -(-sum(lengths) // 5), "best-fit decreasing fills these lengths without a gap"
    found = []
    for row in packed.rows:
        assert len(row["input_ids"]) == len(row["labels"]) == sum(row[LENGTHS]) <= 5
        starts = [sum(row[LENGTHS][:number]) for number in range(len(row[LENGTHS]))]
        for start, length in zip(starts, row[LENGTHS], strict=True):
            ids, labels = (row[name][start : start + length] for name in ("input_ids", "labels"))
            assert labels == [IGNORED, *ids[1:]]
            found.append(ids)
    assert sorted(found) == [[100 * n + place for place in range(length)] for n, length in enumerate(lengths)]


def test_a_batch_of_packed_rows_is_one_sequence_whose_positions_start_anew(tokenizer: PreTrainedTokenizerBase) -> None:
    collate = PackedCollator(tokenizer)
    first = {"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7], LENGTHS: [2, 1]}
    second = {"input_ids": [8, 9], "labels": [8, 9], LENGTHS: [2]}
    batch = collate([first, second])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7, 8, 9]],
        "labels": [[IGNORED, 6, 7, 8, 9]],
        "position_ids": [[0, 1, 0, 0, 1]],
    }


def test_a_single_packed_row_is_a_batch(tokenizer: PreTrainedTokenizerBase) -> None:
    batch = PackedCollator(tokenizer)([{"input_ids": [8, 9], "labels": [8, 9], LENGTHS: [1, 1]}])
    assert batch["position_ids"].tolist() == [[0, 0]]


def test_rows_that_are_not_packed_are_padded(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids} for ids in ([5], [6, 7])]
    batch = PackedCollator(tokenizer)(rows)
    assert batch["input_ids"].tolist() == [[5, tokenizer.pad_token_id], [6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert batch["labels"].tolist() == [[5, IGNORED], [6, 7]]


@pytest.mark.usefixtures("untouched_generators")
def test_looking_at_a_model_leaves_it_as_it_is() -> None:
    model = tiny_llama(1, attention_dropout=0.5).train()  # which would tell rows alone and together apart
    model.model.layers[0].mlp.eval()  # a part that its owner keeps in evaluation mode
    before = {name: module.training for name, module in model.named_modules()}
    check_packing(model, VOCABULARY)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == []


def test_a_model_that_fails_is_left_as_it_is() -> None:
    model = tiny_llama(1).train()
    with pytest.raises(IndexError):
        check_packing(model, 10**6)  # more tokens than it knows
    assert model.training
