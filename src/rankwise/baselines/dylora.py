"""DyLoRA: LoRA trained at a rank drawn anew for each step, so that it can be cut to any rank afterwards.

Valipour et al., arXiv 2210.07558. Letters: ``A`` (r x i) down, ``B`` (o x r) up, ``b`` the rank of a step.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rankwise.files import write_atomic, write_json_atomic
from rankwise.seeds import stable_seed

INITS = (True, False, "gaussian")


def draw_rank(seed: int, step: int, r: int) -> int:
    """Return the rank of an optimizer step, uniform in 1..r; it depends on nothing else, so a resumed run draws alike.

    Args:
        seed: Of the run.
        step: Number of the optimizer step.
        r: The full rank.
    """
    return int(np.random.default_rng(stable_seed(seed, "dylora", step)).integers(1, r, endpoint=True))


class Truncation:
    """Cuts the LoRA layers of a model to their first b ranks: in training to ``rank``, else to ``eval_rank``.

    ``h = W0 x + (alpha / b) B[:, :b] A[:b] dropout(x)``. The scale is that of a LoRA of rank b, so at full rank the
    model is PEFT's own, and cut to b it is a plain LoRA with ``r = b`` and the same alpha. Hooks on the ``A`` of each
    layer do it; nothing in PEFT is changed.

    Args:
        model: A model with a plain LoRA of one rank.
        eval_rank: The rank in evaluation; the full one if left out.

    Raises:
        ValueError: ``eval_rank`` is no rank, or the LoRA is of a kind that can't be cut.
    """

    def __init__(self, model: PeftModel, eval_rank: int | None = None) -> None:
        config = model.peft_config[model.active_adapter]
        assert isinstance(config, LoraConfig)
        check_truncatable(config)
        if eval_rank is not None and (isinstance(eval_rank, bool) or eval_rank not in range(1, config.r + 1)):
            raise ValueError(f"eval_rank={eval_rank!r} must be a whole number from 1 to r={config.r}")
        self.r = config.r
        self.root_scale = config.use_rslora
        self.rank = config.r
        self.eval_rank = eval_rank or config.r
        adapter = model.active_adapter
        layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
        embeddings = [name for name, layer in layers.items() if adapter in layer.lora_embedding_A]
        if embeddings:
            raise ValueError(f"target_modules: DyLoRA can't cut the LoRA of an embedding: leave {embeddings[0]} out")
        downs = [layer.lora_A[adapter] for layer in layers.values()]
        self.handles = [down.register_forward_hook(self._cut) for down in downs]

    def _cut(self, down: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Keep the first b of the r columns of ``A x``, (.., r), scaled from ``alpha / r`` to ``alpha / b``."""
        b = self.rank if down.training else self.eval_rank
        if b == self.r:
            return output
        scale = math.sqrt(self.r / b) if self.root_scale else self.r / b
        kept = torch.arange(self.r, device=output.device) < b
        return output * (kept * scale).to(output.dtype)

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()


def check_truncatable(config: LoraConfig) -> None:
    """Refuse kinds of LoRA whose first ranks are no LoRA of their own.

    Raises:
        ValueError: Names the option.
    """
    for name in ("use_dora", "rank_pattern", "lora_bias"):
        if getattr(config, name):
            raise ValueError(f"{name}={getattr(config, name)!r}: DyLoRA cuts B A to its first ranks; leave {name} out")
    if config.init_lora_weights not in INITS:
        raise ValueError(
            f"init_lora_weights={config.init_lora_weights!r} takes a part of W0 into B A, of which a step that is cut "
            f"to a lower rank would lose some; use one of {', '.join(map(repr, INITS))}"
        )


class DyLoraCallback(TrainerCallback):
    """Draws the rank of each optimizer step.

    Args:
        truncation: What to set.
        seed: Seeds the draws.
    """

    def __init__(self, truncation: Truncation, seed: int) -> None:
        self.truncation = truncation
        self.seed = seed

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw."""
        self.truncation.rank = draw_rank(self.seed, state.global_step, self.truncation.r)


def save_truncated(model: PeftModel, folder: str | Path, rank: int) -> None:
    """Write the first ranks of a LoRA as a plain LoRA of that rank.

    Args:
        model: A model with a plain LoRA.
        folder: Where the adapter goes.
        rank: How many ranks to keep.
    """
    model.save_pretrained(str(folder))
    weights, settings = Path(folder) / "adapter_model.safetensors", Path(folder) / "adapter_config.json"
    tensors = load_file(weights)
    for name, tensor in tensors.items():
        if name.endswith("lora_A.weight"):
            tensors[name] = tensor[:rank].contiguous()
        elif name.endswith("lora_B.weight"):
            tensors[name] = tensor[:, :rank].contiguous()
    write_atomic(weights, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    config = json.loads(settings.read_text(encoding="utf-8"))
    write_json_atomic(settings, {**config, "r": rank})
