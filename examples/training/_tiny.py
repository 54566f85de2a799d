"""What the examples share so that they run anywhere in seconds: a tiny model with random weights, made-up rows.

In a script of your own a ``from_pretrained`` and your data stand in their place.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from rankwise.runs.dryrun import WORDS, tiny_tokenizer

SHAPE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}


def tokenizer() -> Any:
    """A tokenizer of made-up words, with a chat template."""
    return tiny_tokenizer()


def classifier() -> Any:
    """A BERT with two labels."""
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer()), num_labels=2, **SHAPE))


def language_model() -> Any:
    """A LLaMA."""
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer()), **SHAPE, **special))


def sentence(draw: random.Random, words: int = 5) -> str:
    """A made-up sentence."""
    return " ".join(draw.choice(WORDS) for _ in range(words))


def labelled(rows: int = 64) -> Dataset:
    """Tokenized sentences; the label says whether the first word starts with a b."""
    draw = random.Random(0)
    texts = [sentence(draw) for _ in range(rows)]
    encoded = tokenizer()(texts, padding="max_length", max_length=12)
    return Dataset.from_dict({**encoded, "labels": [int(text.startswith("b")) for text in texts]})


def report(model: Any) -> None:
    """Say what was searched."""
    import rankwise

    history = rankwise.history(model)
    assert history, "nothing was searched"
    for record in history:
        print(f"step {record['step']}: {len(record['chosen'])} paths on, {record['how']}")
