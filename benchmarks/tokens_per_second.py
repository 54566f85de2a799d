"""Tokens per second of a causal model with LoR2C, with LoRA and without either: interleaved rounds, medians, ratios.

A path across a block can't be merged into a weight, so LoR2C costs something at inference too; merged LoRA is the base
model itself. Without MODEL: a random LLaMA of 8 blocks, d = 512.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import rankwise

Round = Callable[[], int]
BATCH, LENGTH, WRITTEN = 8, 128, 32
TITLES = {
    "train": f"A training step of {BATCH} x {LENGTH} tokens (the base: all weights)",
    "read": f"A forward pass of {BATCH} x {LENGTH} tokens",
    "write": f"Generation of {WRITTEN} tokens, one sequence",
}
LORA: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}


def base(name: str | None) -> Any:
    """Return the pretrained model, or a random one."""
    if name is not None:
        return AutoModelForCausalLM.from_pretrained(name)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4096, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8
        )
    )


def variants(name: str | None, r: int) -> dict[str, Any]:
    """Return the models to compare, each with adapters that are not zero."""
    return {
        "base": base(name),
        f"LoRA r={r} on q and v": get_peft_model(base(name), LoraConfig(r=r, init_lora_weights=False, **LORA)),
        f"LoR2C r={r}": get_peft_model(
            base(name), rankwise.Lor2cConfig(task_type="CAUSAL_LM", r=r, init_lora_weights=False)
        ),
    }


def rounds(model: Any, device: str) -> dict[str, Round]:
    """Return what is timed by name; each returns the tokens that it went through."""
    model.to(device)
    words = model.config.vocab_size
    ids = torch.randint(3, words, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0)).to(device)
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, 1e-5)

    def train() -> int:
        model.train()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return ids.numel()

    @torch.no_grad()
    def read() -> int:
        model.eval()
        model(input_ids=ids)
        return ids.numel()

    @torch.no_grad()
    def write() -> int:
        model.eval()
        model.generate(
            input_ids=ids[:1, :8],
            attention_mask=torch.ones_like(ids[:1, :8]),
            min_new_tokens=WRITTEN,
            max_new_tokens=WRITTEN,
            do_sample=False,
            pad_token_id=0,
        )
        return WRITTEN

    return {"train": train, "read": read, "write": write}


def timed(round_: Round, device: str) -> float:
    """Return tokens per second."""
    began = time.perf_counter()
    tokens = round_()
    if device != "cpu":
        torch.accelerator.synchronize()
    return tokens / (time.perf_counter() - began)


def main() -> None:
    """Time every model in turn and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    models = {name: rounds(model, arguments.device) for name, model in variants(arguments.model, arguments.r).items()}
    found: dict[tuple[str, str], list[float]] = {}
    for number in range(arguments.rounds + 2):
        for name, each in models.items():
            for what, round_ in each.items():
                speed = timed(round_, arguments.device)
                if number >= 2:  # the first two warm up
                    found.setdefault((what, name), []).append(speed)
    for what, title in TITLES.items():
        print(f"{title}, {arguments.threads} thread(s)")
        reference = statistics.median(found[what, "base"])
        for name in models:
            median = statistics.median(found[what, name])
            print(f"  {name:24} {median:10,.0f} tokens/s  ratio {median / reference:.3f}")


if __name__ == "__main__":
    main()
