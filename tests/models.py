"""Tiny random models, batches and adapters; built from local seeds, so the global generator stays where it was."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedConfig,
)

import rankwise

VOCABULARY = 40
Batch = dict[str, Tensor]


def build(make: Callable[[Any], Any], config: PreTrainedConfig, seed: int = 0) -> Any:
    """Make a model with random weights drawn from ``seed``, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(config).eval()


def bert_config(blocks: int = 2, **fields: Any) -> BertConfig:
    return BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        initializer_range=0.2,  # wide enough that every weight makes a difference
        **fields,
    )


def llama_config(blocks: int = 2, *, gqa: bool = True, **fields: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=2 if gqa else 4,
        intermediate_size=24,
        max_position_embeddings=16,
        initializer_range=0.2,
        **fields,
    )


def tiny_bert(blocks: int = 2, *, seed: int = 0, **fields: Any) -> BertForSequenceClassification:
    """A post-LN encoder of width 16 with a classifier."""
    model: BertForSequenceClassification = build(BertForSequenceClassification, bert_config(blocks, **fields), seed)
    return model


def tiny_llama(blocks: int = 2, *, gqa: bool = True, seed: int = 0, **fields: Any) -> LlamaForCausalLM:
    """A pre-LN decoder of width 16; with ``gqa`` its keys and values are 8 wide."""
    model: LlamaForCausalLM = build(LlamaForCausalLM, llama_config(blocks, gqa=gqa, **fields), seed)
    return model


def tiny_opt(blocks: int = 2, *, pre_norm: bool = True, seed: int = 0, **fields: Any) -> OPTForCausalLM:
    """OPT with its norms before the branches, or after them as in OPT-350M."""
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        word_embed_proj_dim=16,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        ffn_dim=24,
        max_position_embeddings=16,
        do_layer_norm_before=pre_norm,
        init_std=0.2,
        **fields,
    )
    model: OPTForCausalLM = build(OPTForCausalLM, config, seed)
    return model


def tokens(size: int = 2, length: int = 6, seed: int = 0) -> Tensor:
    return torch.randint(4, VOCABULARY, (size, length), generator=torch.Generator().manual_seed(seed))


def class_batches(count: int = 2, size: int = 4) -> list[Batch]:
    """Batches for a two-class classifier."""
    labels = torch.arange(size) % 2
    return [{"input_ids": tokens(size, seed=seed), "labels": labels} for seed in range(count)]


def text_batches(count: int = 2, size: int = 2) -> list[Batch]:
    """Batches for a causal language model."""
    return [{"input_ids": ids, "labels": ids} for ids in (tokens(size, seed=seed) for seed in range(count))]


def adapted(base: nn.Module, **fields: Any) -> PeftModel:
    """Wrap a model with a ``HeteroLoraConfig`` of rank 2 that searches nothing unless told."""
    options: dict[str, Any] = {"r": 2, "lora_alpha": 4, "mode": "off", **fields}
    model = get_peft_model(base, rankwise.HeteroLoraConfig(**options))
    assert isinstance(model, PeftModel)
    return model.eval()


TRIO: dict[str, tuple[Any, str, list[str]]] = {
    "bert": (tiny_bert, "SEQ_CLS", ["query", "value"]),
    "llama": (tiny_llama, "CAUSAL_LM", ["q_proj", "v_proj", "down_proj"]),
    "opt": (tiny_opt, "CAUSAL_LM", ["q_proj", "v_proj", "fc1"]),
}


def one_of_trio(family: str, **fields: Any) -> PeftModel:
    """Wrap an encoder or one of two decoders, with paths on attention and, in decoders, the feed-forward part."""
    make, task, targets = TRIO[family]
    return adapted(make(), task_type=task, target_modules=targets, **fields)


def fill_(model: nn.Module, seed: int = 0) -> None:
    """Give every path's ``B`` values, so that each contributes something of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path in rankwise.named_paths(model).values():
            path.lora_B.copy_(torch.randn(path.lora_B.shape, generator=generator))


def keep_only_(model: nn.Module, *kept: str) -> None:
    """Enable exactly the named paths."""
    names = rankwise.named_paths(model)
    edits = [rankwise.Enable(name) if name in kept else rankwise.Disable(name) for name in names]
    rankwise.apply_(model, edits)


def half_on_(model: nn.Module) -> None:
    """Enable every other path."""
    keep_only_(model, *list(rankwise.named_paths(model))[::2])


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor | None = None) -> Tensor:
    """Return the logits in eval mode."""
    model.eval()
    found: Tensor = model(input_ids=tokens() if ids is None else ids).logits
    return found


def in_a_clean_process(code: str, *arguments: str | Path) -> str:
    """Run ``code`` in a Python that has not imported rankwise and never does; return what it prints."""
    guarded = (
        textwrap.dedent(code) + "\nimport sys\nassert not any(name.startswith('rankwise') for name in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", guarded, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
