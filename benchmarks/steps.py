"""A training step over the floor: PEFT's LoRA, the same paths of rankwise, shortcuts, LoR2C, AdaLoRA, all weights.

Run: OMP_NUM_THREADS=1 python benchmarks/steps.py [--model minilm] [--rounds 11] [--device cpu]

--only takes a regular expression of names. The floor is the frozen model's forward pass, and its backward pass down to
the outputs of the lowest block's projections and no further, without adapters and without an optimizer. MiniLM's batch
is 16 x 64 tokens.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from _harness import SHAPES, Shape, Step, Table, arguments, build, interleaved, kept_bytes
from peft import AdaLoraConfig, LoraConfig, get_peft_model

import rankwise
from rankwise.method.targets import all_linear

SHORTCUTS = ["res1", "res2", "layer"]


def floor(shape: Shape, device: str) -> Step:
    """Return the step of a frozen model whose gradient goes down to its lowest projections."""
    model = build(shape, device).train().requires_grad_(False)
    batch = shape.batch(model, device)
    lowest = [name for name in all_linear(model) if ".0." in name]
    for name in lowest:
        model.get_submodule(name).register_forward_hook(_begin)

    def step() -> None:
        model(**batch).loss.backward()

    return step


def _begin(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
    return output if output.requires_grad else output.requires_grad_()


def trained(model: Any, shape: Shape, device: str, rate: float = 1e-4) -> Step:
    """Return a training step of everything in a model that requires a gradient."""
    model.train()
    batch = shape.batch(model, device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def configs(shape: Shape, linear: list[str]) -> dict[str, Any]:
    """Return the adapters by name."""
    few: dict[str, Any] = {"task_type": shape.task, "target_modules": list(shape.few)}
    every: dict[str, Any] = {"task_type": shape.task, "target_modules": linear}
    off: dict[str, Any] = {"mode": "off"}
    found: dict[str, Any] = {}
    for r in (1, 2, 8):
        sizes = {"r": r, "lora_alpha": 2 * r}
        found[f"PEFT LoRA, q and v, r={r}"] = LoraConfig(**sizes, **few)
        found[f"rankwise, q and v, r={r}"] = rankwise.HeteroLoraConfig(**sizes, **few, **off)
        found[f"PEFT LoRA, all linear, r={r}"] = LoraConfig(**sizes, **every)
        found[f"rankwise, all linear, r={r}"] = rankwise.HeteroLoraConfig(**sizes, **every, **off)
    two = {"r": 2, "lora_alpha": 4, "shortcut_r": 2, "shortcut_alpha": 4}
    found["rankwise, all linear + shortcuts, r=2"] = rankwise.HeteroLoraConfig(
        **two, shortcuts=SHORTCUTS, **every, **off
    )
    found["LoR2C, r=8"] = rankwise.Lor2cConfig(task_type=shape.task, r=8, lora_alpha=16)
    found["AdaLoRA, q and v, r=8"] = AdaLoraConfig(init_r=8, target_r=8, total_step=10**6, **few)
    return found


def variants(shape: Shape, device: str, only: str) -> dict[str, Step]:
    """Return the steps by name, the floor first."""
    steps = {"floor": floor(shape, device)}
    linear = all_linear(build(shape, device))
    for name, config in configs(shape, linear).items():
        if re.search(only, name):
            steps[name] = trained(get_peft_model(build(shape, device), config), shape, device)
    if re.search(only, "all weights"):
        steps["all weights"] = trained(build(shape, device), shape, device, 1e-6)
    return steps


def main() -> None:
    given = arguments(__doc__, model="minilm", only="")
    shape = SHAPES[given.model]
    table = Table(__file__, vars(given))
    steps = variants(shape, given.device, given.only)
    kept = {name: kept_bytes(step) // 2**20 for name, step in steps.items()}
    found = interleaved(steps, given.rounds, given.device)
    title = f"{given.model}, {shape.rows} x {shape.length} tokens, {given.threads} thread(s): a training step"
    table.add(title, found, "floor", kept_MiB=kept)
    table.write()


if __name__ == "__main__":
    main()
