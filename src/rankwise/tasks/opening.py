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


def opening(text: str, tokenizer: PreTrainedTokenizerBase, *, special_tokens: bool) -> Opening:
    """Return a text's token ids as they begin a longer text, opened and not closed.

    Whether a blank joins what follows can depend on its script (many tokenizers keep it apart from digits), which is
    taken to be that of the text's last letter or digit. A tokenizer without offsets ("slow") reads the text as it is.

    Args:
        text: The prompt; an empty one yields what the tokenizer opens every text with.
        tokenizer: The model's.
        special_tokens: Whether it adds its own, as in a plain text. A chat template has written them.
    """
    if not tokenizer.is_fast:
        return Opening(tokenizer(text, add_special_tokens=special_tokens, verbose=False)["input_ids"])
    follows = ""
    if not text or text[-1].isspace():
        follows = next((letter.lower() for letter in reversed(text) if letter.isalnum()), "a")
    read = tokenizer(text + follows, add_special_tokens=special_tokens, return_offsets_mapping=True, verbose=False)
    ends = [end for _, end in read["offset_mapping"]]
    stop = max((place + 1 for place, end in enumerate(ends) if end), default=0)  # without what closes
    if follows:
        stop = next((place for place, end in enumerate(ends) if end > len(text)), stop)
    ids = read["input_ids"][:stop]
    blanks, held = text[len(text.rstrip()) :], str(tokenizer.decode(ids))
    return Opening(ids, blanks.removeprefix(held[len(held.rstrip()) :]))
