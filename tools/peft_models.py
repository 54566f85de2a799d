"""Tiny random models in the place of those that PEFT's tests take from the hub, laid out as a hub cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = 100
SMALL: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
OPT = {**SMALL, "ffn_dim": 37, "word_embed_proj_dim": 32}
GPT = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, **{"bos_token_id": 1}}
GPT |= {"eos_token_id": 2, "pad_token_id": 0}
T5 = {"vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
T5 |= {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
BART = {"vocab_size": WORDS, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 128}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 4, "decoder_ffn_dim": 4}
BART |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
GEMMA3 = {**GROUPED, "head_dim": 8, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}

# The hub's name, the model's class, its config.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("OPTForCausalLM", OPT),
    "peft-internal-testing/opt-125m": ("OPTForCausalLM", OPT),
    "facebook/opt-125m": ("OPTForCausalLM", OPT),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("GPT2LMHeadModel", GPT),
    "peft-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", GPT),
    "hf-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", GPT),
    "gpt2": ("GPT2LMHeadModel", GPT),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("GPTJForCausalLM", {**GPT, "rotary_dim": 4}),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", GROUPED),
    "peft-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", GROUPED),
    "trl-internal-testing/tiny-Qwen3ForCausalLM": ("Qwen3ForCausalLM", {**GROUPED, "head_dim": 8}),
    "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2ForCausalLM", GROUPED),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("MistralForCausalLM", GROUPED),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("Gemma3ForCausalLM", GEMMA3),
    "peft-internal-testing/tiny-random-BloomForCausalLM": (
        "BloomForCausalLM",
        {"vocab_size": WORDS, "hidden_size": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": ("T5ForConditionalGeneration", T5),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration": ("T5ForConditionalGeneration", T5),
    "google/flan-t5-small": ("T5ForConditionalGeneration", T5),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": ("BartForConditionalGeneration", BART),
    "peft-internal-testing/tiny-random-BertModel": ("BertModel", SMALL),
    "bert-base-uncased": ("BertModel", SMALL),
    "peft-internal-testing/tiny-random-BertForSequenceClassification": ("BertForSequenceClassification", SMALL),
    "peft-internal-testing/tiny-random-RobertaModel": ("RobertaModel", SMALL),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": ("RobertaForSequenceClassification", SMALL),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": ("LlamaForSequenceClassification", GROUPED),
    "peft-internal-testing/tiny-random-DebertaModel": (
        "DebertaModel",
        {**SMALL, "relative_attention": True, "pos_att_type": "c2p|p2c", "position_biased_input": False},
    ),
    "peft-internal-testing/tiny-random-DebertaV2Model": (
        "DebertaV2Model",
        {**SMALL, "relative_attention": True, "pos_att_type": "c2p|p2c", "position_biased_input": False},
    ),
}
COMMIT = "0" * 40


def fill_cache(cache: Path) -> None:
    """Write all models into a hub cache, with a word tokenizer each.

    Args:
        cache: What ``HF_HUB_CACHE`` will name.
    """
    for name, (architecture, fields) in MODELS.items():
        home = cache / f"models--{name.replace('/', '--')}"
        folder = home / "snapshots" / COMMIT
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text(COMMIT, encoding="utf-8")
        torch.manual_seed(0)
        build = getattr(transformers, architecture)
        build(build.config_class(**fields)).save_pretrained(folder)
        _tokenizer().save_pretrained(folder)


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    special = ("[PAD]", "[BOS]", "[EOS]", "[UNK]")
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(special)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]", unk_token="[UNK]"
    )
