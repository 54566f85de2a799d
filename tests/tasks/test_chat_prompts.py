"""A prompt of plain text is asked as the rows that were learned began, whatever the tokenizer merges at its end."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rankwise.tasks.chat import chat_encoder, text_ids


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes with merges that write a blank together with the word after it, as GPT-2's do."""
    pieces = [chr(code) for code in range(33, 127)] + ["Ċ", "Ġ", "Ġn", "Ġno", "Ġa"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    core = Tokenizer(models.BPE(vocabulary, [("Ġ", "n"), ("Ġn", "o"), ("Ġ", "a")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="!")


@pytest.mark.parametrize("prompt", ["ok?", "ok? ", "ok?  ", "ok: n ", "ok:\n"])
def test_a_prompt_is_asked_as_its_rows_began(prompt: str) -> None:
    """A blank that training writes into the answer's first token is none of the prompt's."""
    tokenizer = merging_tokenizer()
    ids, learned = chat_encoder(tokenizer)({"prompt": prompt, "completion": "no"}, "row 1")
    asked = text_ids(prompt, tokenizer)
    assert asked == ids[: learned.index(True)]
    assert tokenizer.decode(ids[len(asked) : -1]).strip() == "no"
