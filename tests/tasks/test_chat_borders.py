"""Which tokens of a prompt and its completion bear loss, where tokens reach across the border between them.

And rows that a template leaves something out of.
"""

from __future__ import annotations

import pytest
from datasets import Dataset
from tests.tasks.test_chat import CHATML, CONVERSATIONS, SAID, TEMPLATES, answers, letters, turn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rankwise.tasks import IGNORED, TASKS
from rankwise.tasks.chat import chat_encoder
from rankwise.tasks.encode import encode, prompt_of

__all__ = ["letters"]  # a fixture
READS_PARTS = {"idefics3", "llava_next", "smolvlm"}  # of a content that is a text they write nothing


def merging(*, trim_offsets: bool = False) -> PreTrainedTokenizerBase:
    """Byte-level BPE that merges a space with what follows (``Ġd``), ``bc`` before ``ab``, and three spaces to one."""
    merges = [("b", "c"), ("a", "b"), ("Ġ", "d"), ("Ġ", "Ġ"), ("ĠĠ", "Ġ"), ("o", "t"), ("Ġd", "ot")]
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(one + other for one, other in merges)]
    backend = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", model_max_length=100)


# What is written, what of it is asked, and the tokens that bear loss, by hand: one across the border does.
BORDERS = [
    ("x: ", "dot", ["x", ":"], ["Ġdot"]),  # the space belongs to the answer's first token
    ("x:", " dot", ["x", ":"], ["Ġdot"]),
    ("xab", "c", ["x", "a"], ["bc"]),  # by itself the prompt ends in "ab"
    ("xa", "bc", ["x", "a"], ["bc"]),
    ("x: ", "  dot", ["x", ":"], ["ĠĠ", "Ġdot"]),
    ("x:  ", " ab", ["x", ":", "ĠĠ"], ["Ġ", "ab"]),
]


@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize(("prompt", "completion", "asked", "answer"), BORDERS)
def test_tokens_across_the_border_bear_loss_and_those_before_it_none(
    trim_offsets: bool, prompt: str, completion: str, asked: list[str], answer: list[str]
) -> None:
    tokenizer = merging(trim_offsets=trim_offsets)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    texts = {"prompt": prompt, "completion": completion}
    turns = {"prompt": [turn("user", prompt)], "completion": [turn("assistant", completion)]}
    instruction = Dataset.from_dict({"instruction": ["i"], "output": [completion]})
    for row, closing in ((texts, ["</s>"]), (turns, [])):
        ids, learned = chat_encoder(tokenizer)(dict(row), "row 1")
        assert tokenizer.convert_ids_to_tokens(ids) == [*asked, *answer, *closing]
        assert learned == [False] * len(asked) + [True] * (len(answer) + len(closing))
    alpaca = encode(instruction, TASKS["instruction"], tokenizer, max_length=1000).rows[0]
    said = prompt_of("i") + completion
    assert tokenizer.decode([label for label in alpaca["labels"] if label != IGNORED]) == f"{completion}</s>"
    assert tokenizer.decode(alpaca["input_ids"]) == f"{said}</s>"


def test_a_last_space_of_an_answer_is_learned() -> None:
    tokenizer = merging(trim_offsets=True)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    row = {"prompt": [turn("user", "x")], "completion": [turn("assistant", "y ")]}
    assert chat_encoder(tokenizer)(row, "row 1") == (tokenizer("xy ")["input_ids"], [False, True, True])


def test_an_answer_that_opens_otherwise_than_it_is_asked_for_is_learned_and_a_prompt_that_changes_is_refused(
    letters: PreTrainedTokenizerBase,
) -> None:
    row = {"prompt": SAID[:3], "completion": SAID[3:]}
    thinks = CHATML.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\n' }}")
    assert answers(letters, thinks, row) == ["No.\n\nTwo.<|im_end|>\n"]
    counts = "{{ messages | length }} turns\n" + CHATML
    words = (
        r"^row 1: the chat template writes the prompt otherwise once the completion follows, '3 turns\\n.*' by itself"
    )
    with pytest.raises(ValueError, match=words):
        answers(letters, counts, row)


@pytest.mark.parametrize("name", sorted(file.stem for file in TEMPLATES.glob("*.jinja")))
def test_every_template_of_trl_learns_a_completion_and_nothing_of_its_prompt(
    name: str, letters: PreTrainedTokenizerBase
) -> None:
    template = (TEMPLATES / f"{name}.jinja").read_text("utf-8")
    said = CONVERSATIONS["parts"]["messages"] if name.removesuffix("_training") in READS_PARTS else SAID
    (found,) = answers(letters, template, {"prompt": said[:3], "completion": said[3:]})
    assert "No.\n\nTwo." in found
    assert not any(each["content"] in found for each in SAID[:3])


def test_a_template_that_reads_parts_alone_is_refused(letters: PreTrainedTokenizerBase) -> None:
    """As templates of models that see images write a turn: part by part, and nothing of a text."""
    template = (
        "{% for message in messages %}{{ message['role'] + ': ' }}{% for part in message['content'] %}"
        "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    texts = [turn("user", "bar"), turn("assistant", "dot dun")]
    with pytest.raises(ValueError, match=r"row 1: the chat template writes nothing of the answer 'dot dun'; .*parts"):
        answers(letters, template, {"messages": texts})
    with pytest.raises(ValueError, match="row 1: the chat template writes nothing of the answer 'dot dun'"):
        answers(letters, template, {"prompt": texts[:1], "completion": texts[1:]})
    parts = [turn(each["role"], [{"type": "text", "text": each["content"]}]) for each in texts]
    assert answers(letters, template, {"prompt": parts[:1], "completion": parts[1:]}) == ["assistant: dot dun"]


def test_tools_beside_plain_texts_are_refused(letters: PreTrainedTokenizerBase) -> None:
    row = {"prompt": "bar", "completion": "dot"}
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert answers(letters, CHATML, {**row, "tools": []}) == ["dot</s>"]
    with pytest.raises(ValueError, match="row 1: has tools, which a chat template writes"):
        answers(letters, CHATML, {**row, "tools": [tool]})
