"""Rows that are conversations: the columns they have, what a turn must hold, and what becomes of one that lacks it.

The rows are what TRL takes: ``messages``, or ``prompt`` and ``completion`` (texts, or lists of messages), and ``tools``
beside them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import Dataset

from rankwise.tasks.missing import Missing, is_text
from rankwise.tasks.read import Source, check_column

MESSAGES, PROMPT, COMPLETION, TOOLS = "messages", "prompt", "completion", "tools"
ORIGIN = "_origin"  # a column with the words that an error names the row by: splits and samples know no numbers
ASSISTANT = "assistant"
# How rows are written for the model: by the chat template, or one text behind the other.
CONVERSATION, PLAIN_TEXTS = "conversation", "prompt-completion"

Row = dict[str, Any]
Messages = list[dict[str, Any]]


class Fault(NamedTuple):
    """What is wrong with a row, and which values of ``data.missing`` accept it: none of them, or by losing the row."""

    words: str
    helps: tuple[Missing, ...] = ()


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


def form_of(rows: Dataset) -> str:
    """Return ``CONVERSATION`` for rows that the chat template writes, ``PLAIN_TEXTS`` for prompts that are texts."""
    plain_texts = MESSAGES not in rows.column_names and is_text(rows.data.column(COMPLETION).type)
    return PLAIN_TEXTS if plain_texts else CONVERSATION


def begins_with(rows: Dataset) -> str | None:
    """Return the letter or digit that most completions begin with, in lower case; None where none has one."""
    firsts = (next((c.lower() for c in text if c.isalnum()), None) for text in rows[COMPLETION])
    counted = Counter(first for first in firsts if first)
    return counted.most_common(1)[0][0] if counted else None


def used_columns(rows: Dataset) -> list[str]:
    """Return those of the columns that a conversation is in, ``ORIGIN`` included where it is there."""
    form = (MESSAGES,) if MESSAGES in rows.column_names else (PROMPT, COMPLETION)
    return [column for column in (*form, TOOLS, ORIGIN) if column in rows.column_names]


def complete_chats(source: Source, missing: Missing = "refuse") -> tuple[Source, int]:
    """Return the rows that are conversations with something to learn, and how many were left out.

    Args:
        source: The rows.
        missing: What to do with a row that lacks a text: ``"refuse"`` raises, ``"drop"`` leaves it out, ``"keep"``
            reads it as empty (the last answer can't be kept so: it is what is learned).

    Raises:
        ValueError: Names the first row that is none, and what is wrong with it.
    """
    columns = chat_columns(source)
    used = used_columns(source.rows)
    rows = zip(*(source.rows[column] for column in used), strict=True)
    faults = [_worst(_faults(dict(zip(used, values, strict=True)))) for values in rows]
    for index, fault in enumerate(faults):
        if fault and missing not in fault.helps:
            raise ValueError(f"{source.where}, row {source.number(index)}: {fault.words}{_remedy(fault, faults)}")
    if missing != "drop" or not any(faults):
        return source, 0
    kept = [index for index, fault in enumerate(faults) if fault is None]
    if not kept:
        raise ValueError(f"{source.where}: every row lacks a text in {', '.join(columns)}: nothing is left")
    left = Source(source.rows.select(kept), source.where, [source.number(index) for index in kept])
    return left, len(faults) - len(kept)


def with_origin(source: Source) -> Dataset:
    """Return the columns of a conversation, and ``ORIGIN``."""
    names = [f"{source.where}, row {source.number(index)}" for index in range(len(source.rows))]
    return source.rows.select_columns(used_columns(source.rows)).add_column(ORIGIN, names)


def prompts(source: Source) -> list[tuple[str | Messages, Any]]:
    """Return what each row asks, with its tools: ``prompt``, else ``messages`` without the answer they end with.

    Raises:
        ValueError: There is neither column; names the first row that asks nothing.
    """
    names = source.rows.column_names
    if PROMPT not in names and MESSAGES not in names:
        raise ValueError(
            f"{source.where} has neither {PROMPT!r} nor {MESSAGES!r} to answer; its columns are {', '.join(names)}"
        )
    column = PROMPT if PROMPT in names else MESSAGES
    used = [name for name in (column, TOOLS) if name in names]
    read = reader(source.rows, used)
    found: list[tuple[str | Messages, Any]] = []
    for index, values in enumerate(zip(*(source.rows[name] for name in used), strict=True)):
        row = read(values)
        asked, offered = row[column], row.get(TOOLS)
        if column == MESSAGES and _ends_with_an_answer(asked):
            asked = asked[:-1]
        text = column == PROMPT and isinstance(asked, str)
        fault = _worst([*(_texts if text else _turns)(column, asked), *_tools(offered)])
        if fault:
            raise ValueError(f"{source.where}, row {source.number(index)}: {fault.words}")
        found.append((asked, offered))
    return found


def reader(rows: Dataset, columns: Sequence[str]) -> Callable[[Sequence[Any]], Row]:
    """Return what makes a row of the columns' values, as its author wrote it.

    A table of structs gives every message and every call the keys of all others, with null in them; JSON keeps them.
    """
    structs = {name for name in columns if pa.types.is_nested(rows.data.schema.field(name).type)}

    def read(values: Sequence[Any]) -> Row:
        named = zip(columns, values, strict=True)
        return {name: _without_nulls(value) if name in structs else value for name, value in named}

    return read


def plain(messages: Messages) -> Messages:
    """Return messages without keys that hold nothing; a turn that neither says nor calls anything says ``""``."""
    kept = [{key: value for key, value in message.items() if value is not None} for message in messages]
    for message in kept:
        if not message.get("tool_calls"):  # some templates ask only whether the key is there
            message.pop("tool_calls", None)
            message.setdefault("content", "")
    return kept


def tools_of(value: Any) -> list[dict[str, Any]] | None:
    """Return the tools that a row names: a list, or a text of JSON that is one; none where it names none.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(value, str) and value.strip():
        try:
            tools = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"tools holds a text that is not JSON ({error}): {value!r:.60}") from error
    else:
        tools = None if value == "" else value
    if tools is None:
        return None
    if not isinstance(tools, list):
        raise ValueError(f"tools holds {value!r:.60}, neither a list of tools nor a text of JSON that is one")
    for number, tool in enumerate(tools, start=1):
        if not isinstance(tool, dict):
            raise ValueError(f"tools, number {number} is {tool!r:.60}, not an object that describes a function")
    return tools or None


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _worst(faults: list[Fault] | Iterator[Fault]) -> Fault | None:
    return min(faults, key=lambda fault: len(fault.helps), default=None)


def _remedy(fault: Fault, faults: list[Fault | None]) -> str:
    if not fault.helps:
        return ""
    count = sum(each is not None and bool(each.helps) for each in faults)
    keep = ", keep to train on them" if "keep" in fault.helps else ""
    return (
        f" ({count:,} of {len(faults):,} rows lack a text): fill it in, or say data.missing: drop to leave such rows "
        f"out{keep}"
    )


def _faults(row: Row) -> Iterator[Fault]:
    yield from _tools(row.pop(TOOLS, None))
    texts = [isinstance(value, str) for value in row.values()]
    if MESSAGES in row:
        yield from _turns(MESSAGES, row[MESSAGES])
        yield from _answer(MESSAGES, row[MESSAGES])
    elif any(texts) and all(value is None or isinstance(value, str) for value in row.values()):
        yield from _texts(PROMPT, row[PROMPT])
        if not (row[COMPLETION] or "").strip():
            yield Fault(f"the completion is empty ({row[COMPLETION]!r})", ("drop",))
    elif any(texts):
        yield Fault(f"{PROMPT} and {COMPLETION} must both be texts, or both lists of messages")
    else:
        yield from _turns(PROMPT, row[PROMPT])
        yield from _turns(COMPLETION, row[COMPLETION])
        yield from _answer(COMPLETION, row[COMPLETION])


def _tools(value: Any) -> Iterator[Fault]:
    try:
        tools_of(value)
    except ValueError as error:
        yield Fault(str(error))


def _texts(column: str, text: str | None) -> Iterator[Fault]:
    if not (text or "").strip():
        yield Fault(f"the {column} is empty ({text!r})", ("drop", "keep"))


def _turns(column: str, messages: Any) -> Iterator[Fault]:
    if isinstance(messages, str):
        yield Fault(f"{column} holds a text, not a list of messages")
    elif not isinstance(messages, list) or not messages:
        yield Fault(
            f"{column} holds {messages!r:.60}, not a list of messages", ("drop",) if messages in (None, []) else ()
        )
    else:
        for number, message in enumerate(messages, start=1):
            yield from _turn(f"{column}, message {number}", message)


def _turn(place: str, message: Any) -> Iterator[Fault]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        yield Fault(f"{place} is {message!r:.60}: it needs a role and a content")
        return
    content, calls = message.get("content"), message.get("tool_calls")
    if not isinstance(calls, list | None):
        yield Fault(f"{place} ({message['role']}): tool_calls holds {calls!r:.60}, not a list of calls")
    elif not isinstance(content, str | list | None):
        yield Fault(f"{place} ({message['role']}): content holds {content!r:.60}, neither a text nor a list of parts")
    elif _says_nothing(message):
        yield Fault(f"{place} ({message['role']}) has no content ({content!r:.60})", ("drop", "keep"))


def _answer(column: str, messages: Any) -> Iterator[Fault]:
    """Yield what keeps the last answer from being learned."""
    turns = [each for each in messages if isinstance(each, dict)] if isinstance(messages, list) else []
    if not turns:
        return
    answers = [each for each in turns if each.get("role") == ASSISTANT]
    if not answers:
        yield Fault("no message is the assistant's, so there is nothing to learn")
    elif _says_nothing(answers[-1]):
        yield Fault(f"{column}: the assistant's last turn is empty ({answers[-1].get('content')!r:.60})", ("drop",))


def _says_nothing(message: dict[str, Any]) -> bool:
    """Tell whether a turn has neither words nor calls; a part without a text (a picture) says something."""
    content = message.get("content")
    if message.get("tool_calls"):
        return False
    parts = content if isinstance(content, list) else [content]
    texts = [
        part.get("text", part) if isinstance(part, dict) and part.get("type") == "text" else part for part in parts
    ]
    return all(text is None or (isinstance(text, str) and not text.strip()) for text in texts)


def _ends_with_an_answer(messages: Any) -> bool:
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and last.get("role") == ASSISTANT
