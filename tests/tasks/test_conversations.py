"""Rows that are no conversations: named, left out or read as empty, as ``data.missing`` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tests.tasks.test_chat import CALL, CHAT, Row, learned, load, turn
from transformers import PreTrainedTokenizerBase

from rankwise.runs.dryrun import tiny_tokenizer
from rankwise.tasks.conversations import plain, prompts, tools_of
from rankwise.tasks.read import Source, read_file

USER, ANSWER = CHAT[:2]
GOOD: dict[str, Row] = {
    "messages": {"messages": CHAT},
    "turns": {"prompt": CHAT[:3], "completion": CHAT[3:]},
    "texts": {"prompt": "bar ", "completion": "dot"},
}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


def said(*messages: Any) -> Row:
    return {"messages": list(messages)}


@pytest.mark.parametrize(
    ("form", "row", "message"),
    [
        ("messages", said({"content": "x"}), r"messages, message 1 is .* it needs a role"),
        ("messages", said("x"), r"messages, message 1 is 'x': it needs a role"),
        ("messages", said(USER), "no message is the assistant's"),
        ("messages", {"messages": "x"}, "messages holds a text, not a list of messages"),
        ("messages", {"messages": 5}, "messages holds 5, not a list of messages"),
        ("messages", said(turn("user", 5), ANSWER), r"message 1 \(user\): content holds 5, neither a text nor a list"),
        ("messages", said(turn("user", {"a": "b"}), ANSWER), r"content holds \{'a': 'b'\}, neither"),
        ("messages", said(USER, {**ANSWER, "tool_calls": 5}), r"message 2 \(assistant\): tool_calls holds 5"),
        ("messages", {**GOOD["messages"], "tools": 5}, "tools holds 5, neither a list of tools nor a text of JSON"),
        ("messages", {**GOOD["messages"], "tools": "{"}, r"tools holds a text that is not JSON \(.*\): '\{'"),
        ("messages", {**GOOD["messages"], "tools": '{"a": 1}'}, "neither a list of tools nor a text"),
        ("messages", {**GOOD["messages"], "tools": ["add"]}, "tools, number 1 is 'add', not an object"),
        ("turns", {"prompt": CHAT[:1], "completion": [USER]}, "no message is the assistant's"),
        ("turns", {"prompt": [turn("user", 5)], "completion": CHAT[1:2]}, r"prompt, message 1 \(user\): content holds"),
    ],
)
@pytest.mark.parametrize("missing", ["refuse", "drop", "keep"])
def test_what_is_no_conversation_is_named_whatever_is_missing(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, form: str, row: Row, message: str, missing: str
) -> None:
    if ("tools" in row and not isinstance(row["tools"], list)) or not isinstance(row.get("messages", []), list):
        rows = [row]  # a column of JSON, of numbers or of text, never of two of them
        number = 1
    else:
        rows, number = [GOOD[form], row], 2
    with pytest.raises(ValueError, match=rf"chat\.jsonl, row {number}: .*{message}"):
        load(tmp_path, tokenizer, *rows, missing=missing)


EMPTY: list[tuple[str, Row, str]] = [
    ("messages", said(turn("user", ""), ANSWER), r"messages, message 1 \(user\) has no content \(''\)"),
    ("messages", said(turn("user", " \n"), ANSWER), r"message 1 \(user\) has no content"),
    ("messages", said({"role": "user"}, ANSWER), r"message 1 \(user\) has no content \(None\)"),
    ("messages", said({"role": "user", "content": None}, ANSWER), r"message 1 \(user\) has no content \(None\)"),
    ("messages", said(turn("user", []), ANSWER), r"message 1 \(user\) has no content \(\[\]\)"),
    ("messages", said(USER, turn("assistant", ""), *CHAT), r"message 2 \(assistant\) has no content"),
    ("turns", {"prompt": [turn("user", "")], "completion": [ANSWER]}, r"prompt, message 1 \(user\) has no content"),
    ("texts", {"prompt": " ", "completion": "dot"}, r"the prompt is empty \(' '\)"),
    ("texts", {"prompt": None, "completion": "dot"}, r"the prompt is empty \(None\)"),
]
NOTHING_TO_LEARN: list[tuple[str, Row, str]] = [
    ("messages", {"messages": []}, r"messages holds \[\], not a list of messages"),
    ("messages", {"messages": None}, "messages holds None, not a list"),
    ("messages", said(USER, turn("assistant", " ")), r"the assistant's last turn is empty \(' '\)"),
    ("messages", said(USER, {"role": "assistant", "content": None}), r"last turn is empty \(None\)"),
    ("messages", said(USER, {"role": "assistant", "content": "", "tool_calls": []}), r"last turn is empty"),
    ("messages", said(USER, turn("assistant", [{"type": "text", "text": ""}])), "last turn is empty"),
    ("turns", {"prompt": [USER], "completion": [turn("assistant", "")]}, "completion: the assistant's last turn is"),
    ("texts", {"prompt": "bar", "completion": " "}, r"the completion is empty \(' '\)"),
    ("texts", {"prompt": "bar", "completion": None}, r"the completion is empty \(None\)"),
]


@pytest.mark.parametrize(("form", "row", "message"), EMPTY + NOTHING_TO_LEARN)
def test_an_empty_turn_is_refused_or_dropped(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, form: str, row: Row, message: str
) -> None:
    rows = [GOOD[form], row, GOOD[form]]
    with pytest.raises(ValueError, match=rf"row 2: .*{message}.* \(1 of 3 rows lack a text\): .*data\.missing: drop"):
        load(tmp_path, tokenizer, *rows)
    data = load(tmp_path, tokenizer, *rows, missing="drop")
    assert data.counts()["train"]["rows"] == 2
    assert data.counts()["train"]["missing"] == 1
    with pytest.raises(ValueError, match=r"chat\.jsonl: every row lacks a text"):
        load(tmp_path, tokenizer, row, missing="drop")


@pytest.mark.parametrize(("form", "row", "message"), EMPTY)
def test_an_empty_turn_can_be_kept(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, form: str, row: Row, message: str
) -> None:
    with pytest.raises(ValueError, match="keep to train on them"):
        load(tmp_path, tokenizer, GOOD[form], row)
    if isinstance(row.get("messages", [{}])[0].get("content"), list):
        return  # whether parts can be read is the template's to say
    data = load(tmp_path, tokenizer, GOOD[form], row, missing="keep")
    assert (len(data.train), data.counts()["train"]["missing"]) == (2, 0)
    assert learned(data, 1).endswith("[SEP]")


@pytest.mark.parametrize(("form", "row", "message"), NOTHING_TO_LEARN)
def test_an_empty_answer_can_not_be_kept(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, form: str, row: Row, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path, tokenizer, GOOD[form], row, missing="keep")
    assert "keep to train" not in str(caught.value)


def test_other_columns_are_named(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="has neither 'messages' nor 'prompt' and 'completion'; its columns are text"):
        load(tmp_path, tokenizer, {"text": "x"})
    with pytest.raises(ValueError, match="must both be texts, or both lists"):
        load(tmp_path, tokenizer, {"prompt": [USER], "completion": "dot"})


def test_content_may_be_missing_beside_a_call_alone(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ' ' }}{% if m['role'] == 'assistant' %}{% generation %}"
        "{% if 'tool_calls' in m %}{{ m['tool_calls'][0]['function']['name'] + ' ' }}{% endif %}"
        "{{ (m['content'] or 'nut') + ' [SEP]' }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    call = {**CALL, "function": {"name": "bat", "arguments": {}}}
    calls = [{"role": "assistant", **more, "tool_calls": [call]} for more in ({}, {"content": None}, {"content": ""})]
    data = load(tmp_path, tokenizer, *(said(USER, call) for call in calls), said(*CHAT))
    assert [learned(data, row) for row in range(3)] == ["bat nut [SEP]"] * 3
    assert plain([{**ANSWER, "tool_calls": []}]) == [ANSWER]  # Llama's template asks whether the key is there


def test_tools_are_a_list_or_its_json() -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    for given, found in (
        (None, None),
        ("", None),
        (" null ", None),
        ([], None),
        ("[]", None),
        ([tool], [tool]),
        ('[{"type": "function", "function": {"name": "add"}}]', [tool]),
    ):
        assert tools_of(given) == found


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"messages": CHAT}, CHAT[:3]),
        ({"messages": CHAT[:3]}, CHAT[:3]),
        ({"prompt": CHAT[:1]}, CHAT[:1]),
        ({"prompt": "bar", "messages": CHAT}, "bar"),
    ],
)
def test_what_a_row_asks(row: Row, asked: Any) -> None:
    assert prompts(Source(Dataset.from_list([row]), "x")) == [(asked, None)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "bar"}, "x has neither 'prompt' nor 'messages' to answer; its columns are text"),
        ({"prompt": None}, "x, row 1: prompt holds None, not a list of messages"),
        ({"prompt": " "}, r"x, row 1: the prompt is empty \(' '\)"),
        ({"prompt": 5}, "x, row 1: prompt holds 5"),
        ({"messages": "bar"}, "x, row 1: messages holds a text"),
        ({"messages": [ANSWER]}, r"x, row 1: messages holds \[\], not a list of messages"),
        ({"messages": [turn("user", ""), ANSWER]}, r"x, row 1: messages, message 1 \(user\) has no content"),
        ({"prompt": "bar", "tools": "["}, "x, row 1: tools holds a text that is not JSON"),
    ],
)
def test_what_asks_nothing_is_named(row: Row, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompts(Source(Dataset.from_list([row]), "x"))


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", ""), ("a.json", "[]"), ("a.csv", "prompt\n")])
def test_an_empty_file_is_no_question(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}.* (is empty|Empty)"):
        read_file(tmp_path / name)
