"""A tiny random model of every family whose blocks rankwise knows: 3 blocks of width 16, no dropout, in eval mode.

What a real checkpoint of the family has, its tiny one has too: grouped queries, heads that are not width / heads wide,
sliding windows narrower than the text, soft caps, local and global rotary bases, projected embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tests.models import VOCABULARY, bert_config, build, llama_config
from transformers import (
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

WINDOW = 4  # of the sliding attention, in tokens


@dataclass(frozen=True)
class Family:
    """Builds a tiny model of a family when called.

    Args:
        model: The model's class.
        config: Makes its config for a number of blocks.
        targets: Names of the query and the value projection.
        post_norm: Whether the norms follow the residual sums.
        causal: Whether it is a language model with a KV cache; else a classifier.
    """

    model: Callable[[Any], Any]
    config: Callable[[int], PreTrainedConfig]
    targets: tuple[str, str] = ("q_proj", "v_proj")
    post_norm: bool = False
    causal: bool = True

    def __call__(self, blocks: int = 3, *, seed: int = 0) -> Any:
        """Return a model with random weights; norms and biases too, which would start as ones and zeros."""
        model = build(self.model, self.config(blocks), seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        return model


def roberta_config(blocks: int) -> RobertaConfig:
    return RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=20,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )


def opt_config(blocks: int, *, pre_norm: bool) -> OPTConfig:
    return OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        word_embed_proj_dim=16 if pre_norm else 12,  # OPT-350M projects its embeddings
        num_hidden_layers=blocks,
        num_attention_heads=2,
        ffn_dim=24,
        max_position_embeddings=16,
        do_layer_norm_before=pre_norm,
        dropout=0.0,
        attention_dropout=0.0,
        init_std=0.2,
    )


def decoder_fields(blocks: int) -> dict[str, Any]:
    """Return what the configs of the LLaMA-like families share."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": blocks,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 16,
        "initializer_range": 0.2,
        "attention_dropout": 0.0,
    }


def alternating(blocks: int) -> list[str]:
    return [("sliding_attention", "full_attention")[block % 2] for block in range(blocks)]


def gemma2_config(blocks: int) -> Gemma2Config:
    return Gemma2Config(
        **decoder_fields(blocks),
        head_dim=8,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=2.0,  # low enough to bend
        final_logit_softcapping=5.0,
        sliding_window=WINDOW,
        layer_types=alternating(blocks),
    )


def gemma3_config(blocks: int) -> Gemma3TextConfig:
    return Gemma3TextConfig(
        **decoder_fields(blocks),
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=WINDOW,
        layer_types=alternating(blocks),
    )


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
FAMILIES: dict[str, Family] = {
    "bert": Family(
        BertForSequenceClassification,
        lambda blocks: bert_config(blocks, **NO_DROPOUT),
        targets=("query", "value"),
        post_norm=True,
        causal=False,
    ),
    "roberta": Family(
        RobertaForSequenceClassification, roberta_config, targets=("query", "value"), post_norm=True, causal=False
    ),
    "opt-post": Family(OPTForCausalLM, lambda blocks: opt_config(blocks, pre_norm=False), post_norm=True),
    "opt-pre": Family(OPTForCausalLM, lambda blocks: opt_config(blocks, pre_norm=True)),
    "llama": Family(LlamaForCausalLM, llama_config),
    "mistral": Family(
        MistralForCausalLM, lambda blocks: MistralConfig(**decoder_fields(blocks), sliding_window=WINDOW)
    ),
    "qwen2": Family(Qwen2ForCausalLM, lambda blocks: Qwen2Config(**decoder_fields(blocks))),
    "qwen3": Family(Qwen3ForCausalLM, lambda blocks: Qwen3Config(**decoder_fields(blocks), head_dim=8)),
    "gemma": Family(GemmaForCausalLM, lambda blocks: GemmaConfig(**decoder_fields(blocks), head_dim=8)),
    "gemma2": Family(Gemma2ForCausalLM, gemma2_config),
    "gemma3": Family(Gemma3ForCausalLM, gemma3_config),
}
