from __future__ import annotations

import pytest
from datasets import Dataset
from tests.tasks.test_chat import turn
from tests.tasks.test_chat_borders import BORDERS, merging
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rankwise.tasks.chat import chat_encoder, chat_opening
from rankwise.tasks.conversations import begins_with
from rankwise.tasks.opening import Opening, opening


@pytest.mark.parametrize(
    ("prompt", "answer", "left"),
    [
        ("Once upon a ", "time", " "),
        ("Q: what?\nA: ", "a dog", " "),
        ("two  ", "dogs", " "),  # the first of both is a token of its own
        ("Lily said:\n", "no", ""),
        ("the big", " cat", ""),
        ("", "Once", ""),
    ],
)
def test_a_prompt_is_read_as_it_begins_its_answer(
    llama_tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, left: str
) -> None:
    asked = opening(prompt, llama_tokenizer, special_tokens=True)
    assert asked.ids == llama_tokenizer(prompt + answer)["input_ids"][: len(asked.ids)]
    assert asked.left == left
    alone = llama_tokenizer(prompt)["input_ids"]
    assert (asked.ids == alone) == (not left)


@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize(("prompt", "completion"), [row[:2] for row in BORDERS if row[0][-1] == " "])
def test_a_row_of_pairs_or_turns_begins_with_what_is_asked(trim_offsets: bool, prompt: str, completion: str) -> None:
    """The toy tokenizer joins a blank to ``d`` alone, which is then the prompt's last letter too."""
    tokenizer = merging(trim_offsets=trim_offsets)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    prompt, completion = f"d{prompt[1:]}", f"d{completion.strip()}"
    turns = {"prompt": [turn("user", prompt)], "completion": [turn("assistant", completion)]}
    texts = {"prompt": prompt, "completion": completion}
    for row, asked in (
        (texts, opening(prompt, tokenizer, special_tokens=True)),
        (turns, chat_opening(turns["prompt"], None, tokenizer, "row 1")),
    ):
        ids, learned = chat_encoder(tokenizer)(dict(row), "row 1")
        assert asked.ids == ids[: learned.index(True)]
        answer = tokenizer.decode(ids[learned.index(True) :], skip_special_tokens=True)
        assert answer == f" {completion}"
        assert asked.answer(answer) == completion


def test_a_blank_that_the_tokenizer_keeps_apart_is_asked_with() -> None:
    tokenizer = merging()
    assert opening("1 + 2 = ", tokenizer, special_tokens=True) == Opening(tokenizer("1 + 2 = ")["input_ids"])
    assert opening("d: ", tokenizer, special_tokens=True) == Opening(tokenizer("d:")["input_ids"], " ")


def test_what_answers_begin_with_says_whether_the_blank_is_theirs(llama_tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = "Question: what is it?\nAnswer: "
    for answer in ("12", "the dog"):
        asked = opening(prompt, llama_tokenizer, special_tokens=True, follows=answer[0])
        assert asked.ids == llama_tokenizer(prompt + answer)["input_ids"][: len(asked.ids)]
    assert opening(prompt, llama_tokenizer, special_tokens=True, follows="1").left == ""
    assert opening(prompt, llama_tokenizer, special_tokens=True, follows="t").left == " "


def test_the_letter_that_most_answers_begin_with() -> None:
    def rows(*texts: str) -> Dataset:
        return Dataset.from_dict({"completion": list(texts)})

    assert begins_with(rows(" Yes", "yes.", "12")) == "y"
    assert begins_with(rows("-3", "(4)", "3 of them")) == "3"
    assert begins_with(rows("?", "")) is None


def test_what_opens_a_text_is_kept_and_what_closes_it_is_not(bert_tokenizer: PreTrainedTokenizerBase) -> None:
    whole = bert_tokenizer("bar bin")["input_ids"]
    for text in ("bar bin", "bar bin "):
        assert opening(text, bert_tokenizer, special_tokens=True).ids == whole[:-1]
    assert opening("", bert_tokenizer, special_tokens=True).ids == whole[:1]
    assert opening("", bert_tokenizer, special_tokens=False).ids == []


def test_a_tokenizer_without_offsets_reads_the_prompt_as_it_is(llama_tokenizer: PreTrainedTokenizerFast) -> None:
    class Slow(PreTrainedTokenizerFast):
        is_fast = False

    slow = Slow(tokenizer_object=llama_tokenizer.backend_tokenizer)
    assert opening("big ", slow, special_tokens=False).ids == slow("big ", add_special_tokens=False)["input_ids"]
