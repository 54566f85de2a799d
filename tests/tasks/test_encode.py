from __future__ import annotations

import copy

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rankwise.tasks import TASKS
from rankwise.tasks.encode import cut_into_blocks, encode, longest, prompt_of, with_pad_token

COPA = {"premise": "It rained.", "choice1": "I got wet.", "choice2": "I slept.", "question": "effect", "labels": 0}
ALPACA = {"instruction": "Say hello.", "input": "", "output": "Hello there."}


def test_pairs_are_read_as_the_tokenizer_pairs_them(bert_tokenizer: PreTrainedTokenizerBase) -> None:
    rows = Dataset.from_list([{"sentence1": "one two", "sentence2": "three", "idx": 7, "labels": 1}])
    encoded = encode(rows, TASKS["mrpc"], bert_tokenizer, max_length=16)
    assert set(encoded.rows.column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    assert bert_tokenizer.decode(encoded.rows[0]["input_ids"]) == "[CLS] one two [SEP] three [SEP]"


def test_cut_sequences_are_counted_and_full_ones_are_not(bert_tokenizer: PreTrainedTokenizerBase) -> None:
    rows = Dataset.from_dict({"sentence": ["one", "one two", "one two three"], "labels": [0, 1, 0]})
    encoded = encode(rows, TASKS["sst2"], bert_tokenizer, max_length=4)
    assert [len(ids) for ids in encoded.rows["input_ids"]] == [3, 4, 4]
    assert (encoded.truncated, encoded.dropped) == (1, 0)


def test_both_choices_are_read(bert_tokenizer: PreTrainedTokenizerBase) -> None:
    rows = Dataset.from_list([COPA, COPA | {"question": "cause", "labels": 1}])
    encoded = encode(rows, TASKS["copa"], bert_tokenizer, max_length=64).rows
    texts = [[bert_tokenizer.decode(ids) for ids in row["input_ids"]] for row in encoded]
    assert texts[0] == [
        "[CLS] it rained. what happened as a result? [SEP] i got wet. [SEP]",
        "[CLS] it rained. what happened as a result? [SEP] i slept. [SEP]",
    ]
    assert "what was the cause of this?" in texts[1][0]
    assert encoded["labels"][:] == [0, 1]
    shorter = min(len(ids) for ids in encoded["input_ids"][0])
    assert encode(rows.select([0]), TASKS["copa"], bert_tokenizer, max_length=shorter).truncated == 1


@pytest.mark.parametrize("train_on_prompt", [False, True])
def test_an_instruction_counts_its_answer_and_the_end(
    llama_tokenizer: PreTrainedTokenizerBase, train_on_prompt: bool
) -> None:
    rows = Dataset.from_list([ALPACA])
    encoded = encode(rows, TASKS["instruction"], llama_tokenizer, max_length=512, train_on_prompt=train_on_prompt)
    ids, labels = encoded.rows[0]["input_ids"], encoded.rows[0]["labels"]
    prompt = prompt_of(ALPACA["instruction"])
    assert ids[0] == llama_tokenizer.bos_token_id
    assert ids[-1] == labels[-1] == llama_tokenizer.eos_token_id
    assert llama_tokenizer.decode(ids[1:-1]) == prompt + ALPACA["output"]
    counted = [label for label in labels if label != -100]
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    assert labels[0] == -100
    expected = prompt + ALPACA["output"] if train_on_prompt else ALPACA["output"]
    assert str(llama_tokenizer.decode(counted[:-1])).strip() == expected


def test_an_answer_cut_away_is_dropped_and_a_short_one_is_cut(llama_tokenizer: PreTrainedTokenizerBase) -> None:
    long = ALPACA | {"instruction": "Say hello. " * 50}
    whole = encode(Dataset.from_list([ALPACA]), TASKS["instruction"], llama_tokenizer, max_length=512).rows
    length = len(whole[0]["input_ids"]) - 3
    encoded = encode(Dataset.from_list([ALPACA, long]), TASKS["instruction"], llama_tokenizer, max_length=length)
    assert (len(encoded.rows), encoded.truncated, encoded.dropped) == (1, 2, 1)
    assert encoded.rows[0]["input_ids"] == whole[0]["input_ids"][:length]
    assert encoded.rows[0]["labels"] == whole[0]["labels"][:length]


def test_the_prompt_is_alpacas_and_a_missing_input_leaves_its_part_out() -> None:
    assert "### Input:\nhere" in prompt_of("Translate.", "here")
    assert prompt_of("Translate.", "") == prompt_of("Translate.", None) == prompt_of("Translate.")
    assert prompt_of("Translate.").endswith("### Instruction:\nTranslate.\n\n### Response:\n")


@pytest.mark.parametrize("block_size", [2, 5, 7, 1000])
def test_blocks_predict_every_token_once(llama_tokenizer: PreTrainedTokenizerBase, block_size: int) -> None:
    documents = Dataset.from_dict({"text": ["Once upon a time\nthere was a fox.", "The end."]})
    blocks = cut_into_blocks(documents, "text", llama_tokenizer, block_size=block_size)
    texts = [llama_tokenizer(text, add_special_tokens=False)["input_ids"] for text in documents["text"]]
    stream = [llama_tokenizer.bos_token_id, *texts[0], llama_tokenizer.eos_token_id, *texts[1]]
    predicted = [label for labels in blocks["labels"] for label in labels[1:]]
    assert predicted == stream[1:]
    assert all(labels[0] == -100 for labels in blocks["labels"])
    assert all(2 <= len(ids) <= block_size for ids in blocks["input_ids"])
    for row in blocks:
        assert row["labels"][1:] == row["input_ids"][1:]


def test_a_tokenizer_without_pad_token_pads_with_its_end_in_a_copy(llama_tokenizer: PreTrainedTokenizerBase) -> None:
    bare = copy.deepcopy(llama_tokenizer)
    bare.pad_token = None
    padded = with_pad_token(bare)
    assert padded.pad_token_id == llama_tokenizer.eos_token_id
    assert bare.pad_token is None
    assert with_pad_token(llama_tokenizer) is llama_tokenizer
    bare.eos_token = None
    with pytest.raises(ValueError, match="neither a pad token nor an end of sequence"):
        with_pad_token(bare)


def test_the_greatest_length_is_the_tokenizers_up_to_512(bert_tokenizer: PreTrainedTokenizerBase) -> None:
    endless = copy.deepcopy(bert_tokenizer)
    endless.model_max_length = int(1e30)
    assert (longest(endless, None), longest(bert_tokenizer, 64), longest(endless, 2048)) == (512, 64, 2048)
