"""A tiny random model of every family whose blocks rankwise knows: 3 blocks of width 16, no dropout, in eval mode.

What a real checkpoint of the family has, its tiny one has too: grouped queries, heads that are not width / heads wide,
sliding windows narrower than the text, soft caps, local and global rotary bases, projected embeddings, experts beside
dense blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tests.models import VOCABULARY, bert_config, build, llama_config
from torch import Tensor
from transformers import (
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

EXACT: dict[str, Any] = {"experts_implementation": "eager"}  # the default's kernel has no float64
WINDOW = 4  # of the sliding attention, in tokens


@dataclass(frozen=True)
class Family:
    """Builds a tiny model of a family when called.

    Args:
        model: The model's class.
        config: Makes its config for a number of blocks.
        targets: Names of the query and the value projection, or of the one that makes both.
        post_norm: Whether the norms follow the residual sums.
        causal: Whether it is a language model with a KV cache; else a classifier.
    """

    model: Callable[[Any], Any]
    config: Callable[[int], PreTrainedConfig]
    targets: tuple[str, ...] = ("q_proj", "v_proj")
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


def gpt2_config(blocks: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=blocks,
        n_head=2,
        n_inner=24,
        n_positions=16,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


def distilbert_config(blocks: int) -> DistilBertConfig:
    return DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=16,
        n_layers=blocks,
        n_heads=2,
        hidden_dim=24,
        max_position_embeddings=16,
        initializer_range=0.2,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
    )


def modernbert_config(blocks: int) -> ModernBertConfig:
    return ModernBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        initializer_range=0.2,
        local_attention=WINDOW,  # half of it on each side
        layer_types=alternating(blocks),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    )


def phi3_config(blocks: int) -> Phi3Config:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    ids: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return Phi3Config(**decoder_fields(blocks), **ids, sliding_window=WINDOW, rope_parameters=rope)


def qwen2_moe_config(blocks: int) -> Qwen2MoeConfig:
    sizes: dict[str, Any] = {"moe_intermediate_size": 12, "shared_expert_intermediate_size": 20}
    return Qwen2MoeConfig(
        **decoder_fields(blocks), **sizes, num_experts=3, num_experts_per_tok=2, mlp_only_layers=[1], **EXACT
    )


def qwen3_moe_config(blocks: int) -> Qwen3MoeConfig:
    sizes: dict[str, Any] = {"moe_intermediate_size": 12, "head_dim": 8}
    experts: dict[str, Any] = {"num_experts": 3, "num_experts_per_tok": 2, "norm_topk_prob": True}
    return Qwen3MoeConfig(**decoder_fields(blocks), **sizes, **experts, mlp_only_layers=[1], **EXACT)


def vit_config(blocks: int) -> ViTConfig:
    return ViTConfig(
        hidden_size=16,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
        num_channels=2,
        initializer_range=0.2,
        **NO_DROPOUT,
    )


class TokensForImageClassification(ViTForImageClassification):
    """A ViT whose images are drawn from token ids, so that it answers the same calls as the other families.

    By the end of its name transformers knows its loss.
    """

    def images(self, ids: Tensor) -> Tensor:
        """Return an image for each text, batch x channels x height x width."""
        pixels = torch.arange(2 * 8 * 8).reshape(1, 2, 8, 8)
        return torch.sin((ids.sum(dim=1) + ids[:, 0]).reshape(-1, 1, 1, 1) * (1 + pixels))

    def forward(self, input_ids: Tensor | None = None, **given: Any) -> Any:
        """Classify images, given as they are or as token ids."""
        return super().forward(**given if input_ids is None else {"pixel_values": self.images(input_ids), **given})


NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
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
    "distilbert": Family(
        DistilBertForSequenceClassification,
        distilbert_config,
        targets=("q_lin", "v_lin"),
        post_norm=True,
        causal=False,
    ),
    "modernbert": Family(ModernBertForSequenceClassification, modernbert_config, targets=("Wqkv",), causal=False),
    "vit": Family(TokensForImageClassification, vit_config, causal=False),
    "gpt2": Family(GPT2LMHeadModel, gpt2_config, targets=("c_attn",)),
    "opt-post": Family(OPTForCausalLM, lambda blocks: opt_config(blocks, pre_norm=False), post_norm=True),
    "opt-pre": Family(OPTForCausalLM, lambda blocks: opt_config(blocks, pre_norm=True)),
    "llama": Family(LlamaForCausalLM, llama_config),
    "mistral": Family(
        MistralForCausalLM, lambda blocks: MistralConfig(**decoder_fields(blocks), sliding_window=WINDOW)
    ),
    "qwen2": Family(Qwen2ForCausalLM, lambda blocks: Qwen2Config(**decoder_fields(blocks))),
    "qwen3": Family(Qwen3ForCausalLM, lambda blocks: Qwen3Config(**decoder_fields(blocks), head_dim=8)),
    "mixtral": Family(
        MixtralForCausalLM,
        lambda blocks: MixtralConfig(**decoder_fields(blocks), num_local_experts=3, sliding_window=WINDOW, **EXACT),
    ),
    "qwen2-moe": Family(Qwen2MoeForCausalLM, qwen2_moe_config),
    "qwen3-moe": Family(Qwen3MoeForCausalLM, qwen3_moe_config),
    "phi3": Family(Phi3ForCausalLM, phi3_config, targets=("qkv_proj",)),
    "gemma": Family(GemmaForCausalLM, lambda blocks: GemmaConfig(**decoder_fields(blocks), head_dim=8)),
    "gemma2": Family(Gemma2ForCausalLM, gemma2_config),
    "gemma3": Family(Gemma3ForCausalLM, gemma3_config),
}
