"""Conversations as token ids: the tokenizer's chat template says how they read, and what of them is an answer.

The rows are what TRL takes: ``messages``, or ``prompt`` and ``completion`` (texts, or lists of messages); ``tools``
beside them go into the template. Of ``messages`` the assistant's turns are learned, of a prompt and its completion the
completion.
"""

from __future__ import annotations

import json
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template

from rankwise.tasks.read import Source, check_column

MESSAGES, PROMPT, COMPLETION, TOOLS = "messages", "prompt", "completion", "tools"


def chat_columns(source: Source) -> tuple[str, ...]:
    """Return the columns that the rows' form has: ``messages``, or ``prompt`` and ``completion``.

    Raises:
        ValueError: There is neither.
    """
    names = source.rows.column_names
    if MESSAGES not in names and PROMPT in names:
        check_column(source, COMPLETION)
        return (PROMPT, COMPLETION)
    if MESSAGES not in names:
        raise ValueError(
            f"{source.where} has neither {MESSAGES!r} nor {PROMPT!r} and {COMPLETION!r}; its columns are "
            f"{', '.join(names)}"
        )
    return (MESSAGES,)


def check_chats(source: Source) -> None:
    """Raise unless every row is a conversation with something to learn.

    Raises:
        ValueError: Names the first row that is none, and what is wrong with it.
    """
    columns = chat_columns(source)
    for index, values in enumerate(zip(*(source.rows[column] for column in columns), strict=True)):
        fault = _fault(dict(zip(columns, values, strict=True)))
        if fault:
            raise ValueError(f"{source.where}, row {source.number(index)}: {fault}")


def _fault(row: dict[str, Any]) -> str | None:
    texts = [isinstance(value, str) for value in row.values()]
    if PROMPT in row and all(texts):
        return None if row[COMPLETION].strip() else "the completion is empty"
    if any(texts):
        return f"{' and '.join(row)} must both be texts, or both lists of messages" if PROMPT in row else _not_messages
    for column, messages in row.items():
        if not isinstance(messages, list) or not messages:
            return f"{column} holds {messages!r:.60}, not a list of messages"
        for number, message in enumerate(messages, start=1):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                return f"{column}, message {number} is {message!r:.60}: it needs a role and a content"
    last = row.get(MESSAGES, row.get(COMPLETION, []))
    if not any(message["role"] == "assistant" for message in last):
        return "no message is the assistant's, so there is nothing to learn"
    return None


_not_messages = "messages holds a text, not a list of messages"


def chat_ids(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, template: str | None
) -> tuple[list[int], list[bool]]:
    """Return a conversation's token ids, and which of them are an answer's.

    Args:
        row: Of ``chat_columns``, and ``tools``.
        tokenizer: The model's.
        template: From ``training_template``.
    """
    tools = row.get(TOOLS)
    tools = json.loads(tools) if isinstance(tools, str) else tools
    given: dict[str, Any] = {"tools": tools or None, "tokenize": True, "return_dict": True, "chat_template": template}
    if PROMPT not in row:
        found: Any = tokenizer.apply_chat_template(_plain(row[MESSAGES]), return_assistant_tokens_mask=True, **given)
        return list(found["input_ids"]), [bool(mask) for mask in found["assistant_masks"]]
    if isinstance(row[PROMPT], str):
        found = tokenizer(row[PROMPT] + row[COMPLETION], add_special_tokens=True, return_offsets_mapping=True)
        closing = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        ids = list(found["input_ids"])
        learned = [end > len(row[PROMPT]) for _, end in found["offset_mapping"]]
        if closing and ids[-1:] == closing:  # a tokenizer that closes by itself
            return ids, [*learned[:-1], True]
        return ids + closing, learned + [True] * len(closing)
    prompt, whole = _plain(row[PROMPT]), _plain([*row[PROMPT], *row[COMPLETION]])
    opened: Any = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, **given)
    closed: Any = tokenizer.apply_chat_template(whole, **given)
    before, ids = list(opened["input_ids"]), list(closed["input_ids"])
    pairs = zip(before, ids, strict=False)
    shared = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(before), len(ids)))
    return ids, [place >= shared for place in range(len(ids))]


def training_template(tokenizer: PreTrainedTokenizerBase, columns: tuple[str, ...]) -> str | None:
    """Return the chat template to train with: one that marks the assistant's turns; none for the tokenizer's own.

    Raises:
        ValueError: The tokenizer has no chat template, or one whose answers can't be told from the rest.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            "the tokenizer has no chat template: name an instruction-tuned model in model.name, give a template in "
            "model.chat_template, or give prompt and completion as plain texts"
        )
    if columns != (MESSAGES,):
        return None
    try:
        return get_training_chat_template(tokenizer)
    except ValueError as error:
        raise ValueError(
            "the tokenizer's chat template does not mark the assistant's turns ({% generation %}), and TRL knows no "
            "variant of it that does: give rows with prompt and completion, or a template of your own in "
            "model.chat_template"
        ) from error


def _plain(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out the keys that a table gave to messages which had none."""
    return [{key: value for key, value in message.items() if value is not None} for message in messages]
