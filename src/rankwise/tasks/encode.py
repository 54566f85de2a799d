"""From text to token ids: pairs, the two sequences of a choice, instructions with their answer, blocks of text."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rankwise.tasks.conversations import ORIGIN, reader, used_columns
from rankwise.tasks.labels import LABELS
from rankwise.tasks.read import quiet
from rankwise.tasks.registry import CHAT, Task

IGNORED = -100  # a label that no loss counts
LONGEST = 512
CHOICES = ("choice1", "choice2")
QUESTIONS = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)

Batch = dict[str, list[Any]]


class Encoded(NamedTuple):
    """Rows of token ids, and how many did not come through whole.

    Args:
        rows: The rows.
        truncated: Cut at the greatest length.
        dropped: Left out, with no token to learn.
        cut_answers: Of the truncated ones that stayed, those that lost a part of what is to be learned.
    """

    rows: Dataset
    truncated: int
    dropped: int
    cut_answers: int = 0


def with_pad_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer, or where it has no pad token (LLaMA, GPT-2) a copy that pads with its end of sequence.

    Nothing is ever masked by token id, only by the attention mask and by labels of -100, so an end of sequence that
    belongs to the text is read and learned as before.

    Raises:
        ValueError: There is neither a pad token nor an end of sequence.
    """
    if tokenizer.pad_token is not None:
        return tokenizer
    if tokenizer.eos_token is None:
        raise ValueError("the tokenizer has neither a pad token nor an end of sequence: set tokenizer.pad_token")
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = tokenizer.eos_token
    return padded


def longest(tokenizer: PreTrainedTokenizerBase, asked: int | None) -> int:
    """Return the length to cut at: what was asked for, else the tokenizer's limit, at most 512."""
    return asked or min(tokenizer.model_max_length, LONGEST)


def encode(
    rows: Dataset,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    train_on_prompt: bool = False,
) -> Encoded:
    """Tokenize rows of ``task``; the columns left are the model's inputs and ``labels``."""

    def texts(batch: Batch) -> Batch:
        return _texts(batch, task, tokenizer, max_length)

    def choices(batch: Batch) -> Batch:
        return _choices(batch, tokenizer, max_length)

    def instructions(batch: Batch) -> Batch:
        return _instructions(batch, tokenizer, max_length, train_on_prompt)

    encoders: dict[str, Callable[[Batch], Batch]] = {
        "classification": texts,
        "regression": texts,
        "choice": choices,
        "causal": instructions,
    }
    if task.name == CHAT:
        encoders["causal"] = _chats(rows, tokenizer, max_length, train_on_prompt)
    unused = [column for column in rows.column_names if column != LABELS]
    with quiet():
        encoded = rows.map(encoders[task.kind], batched=True, remove_columns=unused, keep_in_memory=True)
        truncated = sum(encoded["truncated"])
        encoded = encoded.remove_columns("truncated")
        if task.kind != "causal":
            return Encoded(encoded, truncated, 0)
        learnable = [any(label != IGNORED for label in labels) for labels in encoded[LABELS]]
        kept = encoded.select([row for row, learned in enumerate(learnable) if learned])
    return Encoded(kept, truncated, len(encoded) - len(kept), truncated - (len(encoded) - len(kept)))


def cut_into_blocks(documents: Dataset, column: str, tokenizer: PreTrainedTokenizerBase, *, block_size: int) -> Dataset:
    """Join documents, with the end of sequence between them, and cut the tokens into blocks.

    A block starts with the last token of the one before it, as context alone, and the last block may be short: so
    every token but the very first is predicted exactly once.

    Raises:
        ValueError: There are fewer than two tokens.
    """
    ids = _opening(tokenizer)
    separator = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for number, text in enumerate(documents[column]):
        ids += (separator if number else []) + tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < 2:
        raise ValueError(f"column {column!r} holds {len(ids)} tokens of text, two are the least to learn from")
    blocks = [ids[start : start + block_size] for start in range(0, len(ids) - 1, block_size - 1)]
    return Dataset.from_dict({"input_ids": blocks, LABELS: [[IGNORED, *block[1:]] for block in blocks]})


def _texts(batch: Batch, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Batch:
    columns = [batch[column] for column in task.columns]
    encoded = dict(tokenizer(*columns, truncation=True, max_length=max_length))
    return encoded | {"truncated": _truncated(columns, encoded["input_ids"], tokenizer, max_length)}


def _choices(batch: Batch, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Batch:
    questions = [
        f"{premise} {QUESTIONS.get(question, question)}"
        for premise, question in zip(batch["premise"], batch["question"], strict=True)
    ]
    first = [question for question in questions for _ in CHOICES]
    second = [choice for both in zip(*(batch[name] for name in CHOICES), strict=True) for choice in both]
    encoded = dict(tokenizer(first, second, truncation=True, max_length=max_length))
    cut = _truncated([first, second], encoded["input_ids"], tokenizer, max_length)
    grouped = {name: list(_in_groups(values, len(CHOICES))) for name, values in encoded.items()}
    return grouped | {"truncated": [int(any(pair)) for pair in _in_groups(cut, len(CHOICES))]}


def _instructions(batch: Batch, tokenizer: PreTrainedTokenizerBase, max_length: int, train_on_prompt: bool) -> Batch:
    if not tokenizer.is_fast:
        raise ValueError("task='instruction' needs a fast tokenizer: it tells the answer's tokens by their offsets")
    contexts = batch.get("input") or [None] * len(batch["instruction"])
    prompts = [prompt_of(*row) for row in zip(batch["instruction"], contexts, strict=True)]
    texts = [prompt + answer for prompt, answer in zip(prompts, batch["output"], strict=True)]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    opening = _opening(tokenizer)
    closing = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    result: Batch = {"input_ids": [], LABELS: [], "truncated": []}
    for prompt, ids, offsets in zip(prompts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        learned = [end > len(prompt) or train_on_prompt for _, end in offsets]
        labels = [token if counts else IGNORED for token, counts in zip(ids, learned, strict=True)]
        whole = [*opening, *ids, *closing]
        result["input_ids"].append(whole[:max_length])
        # The first token has nothing before it to be predicted from, with left padding either.
        result[LABELS].append([IGNORED, *[*[IGNORED] * len(opening), *labels, *closing][1:max_length]])
        result["truncated"].append(int(len(whole) > max_length))
    return result


def _chats(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, train_on_prompt: bool
) -> Callable[[Batch], Batch]:
    from rankwise.tasks.chat import chat_encoder  # importing TRL is what takes time

    used = used_columns(rows)
    read, encode_row = reader(rows, used), chat_encoder(tokenizer)

    def encode_chats(batch: Batch) -> Batch:
        result: Batch = {"input_ids": [], LABELS: [], "truncated": []}
        for values in zip(*(batch[column] for column in used), strict=True):
            row = read(values)
            ids, learned = encode_row(row, row.pop(ORIGIN, "a conversation"))
            labels = [
                token if counts or train_on_prompt else IGNORED for token, counts in zip(ids, learned, strict=True)
            ]
            result["input_ids"].append(ids[:max_length])
            result[LABELS].append([IGNORED, *labels[1:max_length]])
            result["truncated"].append(int(len(ids) > max_length))
        return result

    return encode_chats


def prompt_of(instruction: str, context: str | None = None) -> str:
    """Return the Alpaca prompt: what the model reads before it answers; ``context`` is the column ``input``."""
    if context and context.strip():
        return PROMPT_WITH_INPUT.format(instruction=instruction, input=context)
    return PROMPT.format(instruction=instruction)


def _truncated(
    columns: list[list[str]], ids: list[list[int]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[int]:
    """Tell for each row whether tokens were cut off; only rows of the greatest length are looked at again."""
    cut = [0] * len(ids)
    full = [row for row, tokens in enumerate(ids) if len(tokens) == max_length]
    if full:
        again = tokenizer(*([column[row] for row in full] for column in columns), verbose=False)["input_ids"]
        for row, tokens in zip(full, again, strict=True):
            cut[row] = int(len(tokens) > max_length)
    return cut


def _opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the begin-of-sequence token where this tokenizer puts one, else nothing."""
    return [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id][:1]


def _in_groups(values: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
