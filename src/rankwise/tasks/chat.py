"""Conversations as token ids: the tokenizer's chat template says how they read, and what of them is an answer.

Of ``messages`` the assistant's turns are learned, of a prompt and its completion the completion. Where a template does
not mark the assistant's turns, turn ``i`` is what its rendering adds to what the model is asked with before it:

``answer(i) = render(messages[: i + 1]) - render(messages[:i], add_generation_prompt=True)``
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from rankwise.tasks.conversations import (
    ASSISTANT,
    COMPLETION,
    MESSAGES,
    PROMPT,
    TOOLS,
    Messages,
    Row,
    plain,
    tools_of,
)
from rankwise.tasks.opening import Opening, opening

# What rendering raises: a template is a program, and does with a message what its author expected it to hold.
REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
# Llama's templates write the day's date where they are told none; then the same rows would differ from day to day.
FIXED = {"date_string": "26 Jul 2024"}

Ids = tuple[list[int], list[bool]]


@dataclass(frozen=True)
class Template:
    """How conversations read.

    Args:
        tokenizer: The model's.
        text: The template.
        marks: Whether it marks the assistant's turns.
    """

    tokenizer: PreTrainedTokenizerBase
    text: str
    marks: bool

    def apply(self, messages: Messages, tools: Any, where: str, **how: Any) -> Any:
        """Return what the tokenizer makes of messages.

        Raises:
            ValueError: The template refuses them.
        """
        how |= {"return_dict": True, "tokenizer_kwargs": {"verbose": False}, **FIXED}
        with _named(where):
            return self.tokenizer.apply_chat_template(messages, tools=tools, chat_template=self.text, **how)


def chat_encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[Row, str], Ids]:
    """Return what turns a row, and the words an error names it by, into token ids and which of them are an answer's.

    The row is one that ``complete_chats`` accepts.
    """
    templates: dict[tuple[bool, bool], Template] = {}  # a tokenizer may have one of its own for tools

    def encode_row(row: Row, where: str) -> Ids:
        tools, whole = tools_of(row.get(TOOLS)), PROMPT not in row
        if not whole and isinstance(row[COMPLETION], str):
            if tools:
                raise ValueError(
                    f"{where}: has tools, which a chat template writes, beside a prompt and a completion that are "
                    "plain texts, which none does: give lists of messages, or leave the tools out"
                )
            return _texts(row[PROMPT] or "", row[COMPLETION], tokenizer)
        parts = [plain(row[column]) for column in ((MESSAGES,) if whole else (PROMPT, COMPLETION))]
        messages = [message for part in parts for message in part]
        kind = (whole, bool(tools))
        if kind not in templates:
            template = (training_template if whole else own_template)(tokenizer, tools=bool(tools))
            _check_texts(template, messages, tools, where)
            templates[kind] = template
        template = templates[kind]
        _check_calls(template, messages, where)
        if not whole:
            return _completion(template, parts[0], parts[1], tools, where)
        return (_marked if template.marks else _between)(template, parts[0], tools, where)

    return encode_row


def chat_opening(prompt: str | Messages, tools: Any, tokenizer: PreTrainedTokenizerBase, where: str) -> Opening:
    """Return what is asked, up to where the answer begins; a text is the user's turn.

    Raises:
        ValueError: The template refuses it, or there is none.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else plain(prompt)
    tools = tools_of(tools)
    template = own_template(tokenizer, tools=bool(tools))
    asked = str(template.apply(messages, tools, where, tokenize=False, add_generation_prompt=True))
    return opening(asked, tokenizer, special_tokens=False)


def own_template(tokenizer: PreTrainedTokenizerBase, *, tools: bool) -> Template:
    """Return the tokenizer's own chat template.

    Raises:
        ValueError: It has none.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            "the tokenizer has no chat template: name an instruction-tuned model in model.name, give a template in "
            "model.chat_template, or give prompt and completion as plain texts"
        )
    text = tokenizer.get_chat_template(tools=[{}] if tools else None)
    return Template(tokenizer, text, has_generation_markers(text))


def training_template(tokenizer: PreTrainedTokenizerBase, *, tools: bool = False) -> Template:
    """Return the chat template to train with: one that marks the assistant's turns where TRL has it, else the own.

    Raises:
        ValueError: The tokenizer has no chat template, or can't say which tokens an answer became.
    """
    own = own_template(tokenizer, tools=tools)
    if not tokenizer.is_fast:
        raise ValueError("task='chat' with messages needs a fast tokenizer: it tells an answer's tokens by offsets")
    asked = copy.copy(tokenizer)
    asked.chat_template = own.text
    try:
        text = get_training_chat_template(asked) or own.text
    except REFUSALS:  # it knows no variant; or a template can't render what TRL tries it with
        return own
    return Template(tokenizer, text, has_generation_markers(text))


def _check_texts(template: Template, messages: Messages, tools: Any, where: str) -> None:
    """Raise where the template writes no word of an answer: an empty one would be learned."""
    answers = [message.get("content") for message in messages if message["role"] == ASSISTANT]
    texts = [text for text in answers if isinstance(text, str) and text.strip()]
    shown = template.apply(messages, tools, where, tokenize=False) if texts else ""
    for text in texts:
        if not any(word in shown for word in text.split()):
            raise ValueError(
                f"{where}: the chat template writes nothing of the answer {text!r:.60}; one of a model that sees "
                "images may read lists of parts alone: give another in model.chat_template"
            )


def _check_calls(template: Template, messages: Messages, where: str) -> None:
    """Raise where the template leaves a tool call out: the turn would be learned as an empty one."""
    calls = [call for message in messages for call in message.get("tool_calls", ()) if isinstance(call, dict)]
    names = [function.get("name") for call in calls if isinstance(function := call.get("function", call), dict)]
    if not names:
        return
    shown = template.apply(messages, None, where, tokenize=False)  # without the list of tools, which has the names
    for name in names:
        if isinstance(name, str) and name not in shown:
            raise ValueError(
                f"{where}: calls the tool {name!r}, and the chat template leaves tool calls out: give another template "
                "in model.chat_template, or rows without calls"
            )


def _marked(template: Template, messages: Messages, tools: Any, where: str) -> Ids:
    """Take the answers from the marks, by their places in the text: a token that only touches one is none of it."""
    render: Any = render_jinja_template  # apply_chat_template loses marks that begin or end with white space
    given = {**template.tokenizer.special_tokens_map, **FIXED, "chat_template": template.text}
    with _named(where):
        texts, marked = render([messages], tools=tools, return_assistant_tokens_mask=True, **given)
    return _masked(template.tokenizer, texts[0], marked[0])


def _between(template: Template, messages: Messages, tools: Any, where: str) -> Ids:
    """Find the answers of a template without marks by rendering the messages up to each."""

    def render(upto: int, *, ask: bool = False) -> str:
        place = where if upto == len(messages) else f"{where}, up to message {upto}"
        return str(template.apply(messages[:upto], tools, place, tokenize=False, add_generation_prompt=ask))

    whole = render(len(messages))
    answers: list[tuple[int, int]] = []
    for place, message in enumerate(messages):
        if message["role"] == ASSISTANT:
            after = whole if place + 1 == len(messages) else render(place + 1)
            before = render(place, ask=True) if place else _first_opening(render(1, ask=True), after)
            for part, rest in ((before, after), (after, whole)):
                if not rest.startswith(part):
                    raise ValueError(_not_found(where, place + 1, part, rest))
            answers.append((len(before), len(after)))
    return _masked(template.tokenizer, whole, answers)


def _masked(tokenizer: PreTrainedTokenizerBase, text: str, answers: Sequence[tuple[int, int]]) -> Ids:
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    learned = [any(end > first and start < last for first, last in answers) for start, end in found["offset_mapping"]]
    return list(found["input_ids"]), learned


def _first_opening(asked: str, after: str) -> str:
    """Return what the model reads before an answer that nothing precedes, which no template can render."""
    header = asked.removeprefix(after)
    found = after.find(header)
    return after[: found + len(header)] if header != asked and header and found >= 0 else asked


def _changed(where: str, asked: str, closed: str) -> str:
    one, other = _apart(asked, closed)
    return (
        f"{where}: the chat template writes the prompt otherwise once the completion follows, {one!r} by itself and "
        f"{other!r} before it, so what is to be learned can't be told: give another template in model.chat_template, "
        "or prompt and completion as plain texts"
    )


def _apart(one: str, other: str) -> tuple[str, str]:
    """Return both texts around where they begin to differ."""
    same = _shared(one, other)
    return one[max(same - 20, 0) : same + 20], other[max(same - 20, 0) : same + 20]


def _not_found(where: str, number: int, part: str, rest: str) -> str:
    one, other = _apart(part, rest)
    return (
        f"{where}: the chat template does not mark the assistant's turns ({{% generation %}}), TRL knows no variant of "
        f"it that does, and message {number} can't be found by rendering the messages up to it, which read "
        f"{one!r} by themselves and {other!r} within more: give a template in model.chat_template, or rows with prompt "
        "and completion"
    )


def _completion(template: Template, prompt: Messages, completion: Messages, tools: Any, where: str) -> Ids:
    """Learn what follows the prompt, told by the texts: tokens may reach across the border, and merge around it."""
    tokenizer = template.tokenizer
    asked = str(template.apply(prompt, tools, where, tokenize=False, add_generation_prompt=True))
    closed = str(template.apply([*prompt, *completion], tools, where, tokenize=False))
    border = _shared(asked, closed)
    if border < len(asked):  # an answer may open otherwise than it is asked for (<think>), the prompt may not
        said = str(template.apply(prompt, tools, where, tokenize=False))
        if border < _shared(said, asked):
            raise ValueError(_changed(where, asked, closed))
    if tokenizer.is_fast:  # to the end, that is one further: trimmed offsets put a last space behind itself
        return _masked(tokenizer, closed, [(border, len(closed) + 1)])
    encoded = tokenizer([asked, closed], add_special_tokens=False, verbose=False)["input_ids"]
    shared, ids = _shared(*encoded), list(encoded[1])
    return ids, [place >= shared for place in range(len(ids))]


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return how much of their beginning two sequences share."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _texts(prompt: str, completion: str, tokenizer: PreTrainedTokenizerBase) -> Ids:
    if not tokenizer.is_fast:
        raise ValueError("task='chat' with plain texts needs a fast tokenizer: it tells an answer's tokens by offsets")
    found = tokenizer(prompt + completion, add_special_tokens=True, return_offsets_mapping=True, verbose=False)
    closing = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = list(found["input_ids"])
    learned = [end > len(prompt) for _, end in found["offset_mapping"]]
    if closing and ids[-1:] == closing:  # a tokenizer that closes by itself
        return ids, [*learned[:-1], True]
    return ids + closing, learned + [True] * len(closing)


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Say which row a template refuses, and what it said."""
    try:
        yield
    except TemplateSyntaxError as error:
        raise ValueError(
            f"the chat template is no valid Jinja (line {error.lineno}: {error.message}): correct it, or give another "
            "in model.chat_template"
        ) from error
    except REFUSALS as error:
        said = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{where}: the chat template refuses it: {' '.join(said.split())[:300]}: change the row, or give another "
            "template in model.chat_template"
        ) from error
