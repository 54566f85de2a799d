"""Tokens per second of a causal model with LoR2C, with LoRA and without either.

Run: OMP_NUM_THREADS=1 python benchmarks/tokens_per_second.py [--model FOLDER] [--r 16] [--rounds 5] [--device cpu]

A path across a block can't be merged into a weight, so LoR2C costs something at inference too; merged LoRA is the base
model itself. Without --model: a random LLaMA of 8 blocks, d = 512. Ratios are of seconds; above 1 is slower.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from _harness import Step, Table, arguments, interleaved, precision
from _shapes import QV, Shape, build, generation, shape_of
from peft import LoraConfig, get_peft_model
from steps import trained
from transformers import LlamaConfig, LlamaForCausalLM

import rankwise

BATCH, LENGTH, WRITTEN = 8, 128, 32
TITLES = {
    f"a training step of {BATCH} x {LENGTH} tokens (the base: all weights)": BATCH * LENGTH,
    f"a forward pass of {BATCH} x {LENGTH} tokens": BATCH * LENGTH,
    f"generation of {WRITTEN} tokens, one sequence": WRITTEN,
}


def _random() -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4096, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8
        )
    )


def shape_for(name: str) -> Shape:
    """Return the model of a name, or the random one."""
    build = shape_of(name).build if name else _random
    return Shape(build, BATCH, LENGTH, QV)


def variants(shape: Shape, device: str, r: int) -> dict[str, Any]:
    """Return the models to compare, each with adapters that are not zero."""
    fields: dict[str, Any] = {"task_type": shape.task, "r": r, "init_lora_weights": False}
    lora = LoraConfig(target_modules=list(QV), **fields)
    return {
        "base": build(shape, device),
        f"LoRA r={r} on q and v": get_peft_model(build(shape, device), lora),
        f"LoR2C r={r}": get_peft_model(build(shape, device), rankwise.Lor2cConfig(**fields)),
    }


def modes(model: Any, shape: Shape, device: str) -> tuple[Step, Step, Step]:
    """Return a training step, a forward pass and a generation; each puts the model into its mode."""
    batch = shape.batch(model, device)
    step, write = trained(model, shape, device, 1e-5), generation(model, device, WRITTEN)

    def train() -> None:
        model.train()
        step()

    @torch.no_grad()
    def read() -> None:
        model.eval()
        with precision(device):
            model(input_ids=batch["input_ids"])

    def generate() -> None:
        model.eval()
        write()

    return train, read, generate


def main() -> None:
    given = arguments(__doc__, model="", r=16, rounds=5)
    shape = shape_for(given.model)
    models = {name: modes(model, shape, given.device) for name, model in variants(shape, given.device, given.r).items()}
    steps = {(title, name): step for name, each in models.items() for title, step in zip(TITLES, each, strict=True)}
    timed = interleaved({"\0".join(key): step for key, step in steps.items()}, given.rounds, given.device)
    table = Table(__file__, vars(given))
    for title, tokens in TITLES.items():
        found = {name: timed[f"{title}\0{name}"] for name in models}
        speed = {name: round(tokens / statistics.median(values), 1) for name, values in found.items()}
        table.add(f"{given.threads} thread(s): {title}", found, "base", tokens_per_second=speed)
    table.write()


if __name__ == "__main__":
    main()
