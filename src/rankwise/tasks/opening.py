"""A prompt as token ids that an answer can follow.

Training reads a prompt and its answer as one text, and most tokenizers join a blank to the word behind it: ``"A: yes"``
is ``A``, ``:``, ``_yes``, while the prompt ``"A: "`` alone ends in a token ``_`` that no training row has there. So a
prompt that ends in white space is read with a character behind it, and what reaches into that is left to the model.
"""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedTokenizerBase


class Opening(NamedTuple):
    """What a model reads before it answers.

    Args:
        ids: The token ids.
        left: White space at the prompt's end that these don't hold: the answer begins with it.
    """

    ids: list[int]
    left: str = ""

    def answer(self, text: str) -> str:
        """Return what was generated without the white space that is the prompt's."""
        return text.removeprefix(self.left)


def opening(
    text: str, tokenizer: PreTrainedTokenizerBase, *, special_tokens: bool, follows: str | None = None
) -> Opening:
    """Return a text's token ids as they begin a longer text, opened and not closed.

    A tokenizer without offsets ("slow") reads the text as it is.

    Args:
        text: The prompt; an empty one yields what the tokenizer opens every text with.
        tokenizer: The model's.
        special_tokens: Whether it adds its own, as in a plain text. A chat template has written them.
        follows: A letter or digit that is likely to follow: whether a blank joins it can depend on its script (many
            tokenizers keep it apart from digits). Left out, the text's own last one.
    """
    if not tokenizer.is_fast:
        return Opening(tokenizer(text, add_special_tokens=special_tokens, verbose=False)["input_ids"])
    probe = ""
    if not text or text[-1].isspace():
        probe = follows or next((letter.lower() for letter in reversed(text) if letter.isalnum()), "a")
    read = tokenizer(text + probe, add_special_tokens=special_tokens, return_offsets_mapping=True, verbose=False)
    ends = [end for _, end in read["offset_mapping"]]
    stop = max((place + 1 for place, end in enumerate(ends) if end), default=0)  # without what closes
    if probe:
        stop = next((place for place, end in enumerate(ends) if end > len(text)), stop)
    ids = read["input_ids"][:stop]
    return Opening(ids, _blanks(text).removeprefix(_blanks(str(tokenizer.decode(ids)))))


def _blanks(text: str) -> str:
    """Return the white space that a text ends in."""
    return text[len(text.rstrip()) :]
