"""A training step over the floor: PEFT's LoRA, the same paths of rankwise, shortcuts, LoR2C, AdaLoRA, all weights.

Run: OMP_NUM_THREADS=1 python benchmarks/steps.py [--model minilm,opt-350m] [--rounds 12] [--device cpu]

--only takes a regular expression of names, --model names of shapes or folders with causal models, each with
@ROWSxLENGTH behind it for another batch. The floor is the
frozen model's forward pass, and its backward pass down to the outputs of the lowest block's projections and no
further, without adapters and without an optimizer. MiniLM's batch is 16 x 64 tokens. Without a GPU there are
fewer variants of the large shapes, in a quarter of the rounds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from _harness import WARM, Step, Table, arguments, interleaved, kept_bytes, precision
from _shapes import FEW_VARIANTS, Shape, build, shape_of, sharing, title_of
from peft import AdaLoraConfig, LoraConfig, get_peft_model

import rankwise
from rankwise.method.targets import all_linear

SHORTCUTS = ["res1", "res2", "layer"]


def floor(model: Any, shape: Shape, device: str) -> Step:
    """Return the step of a frozen model whose gradient goes down to its lowest projections."""
    model.train().requires_grad_(False)
    batch = shape.batch(model, device)
    lowest = [name for name in all_linear(model) if ".0." in name]
    for name in lowest:
        model.get_submodule(name).register_forward_hook(_begin)

    def step() -> None:
        with precision(device):
            loss = model(**batch).loss
        loss.backward()

    return step


def _begin(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
    return output if output.requires_grad else output.requires_grad_()


@dataclass
class Training:
    """A training step of everything in a model that requires a gradient."""

    model: Any
    batch: dict[str, Any]
    optimizer: torch.optim.Optimizer
    device: str

    def __call__(self) -> None:
        with precision(self.device):
            loss = self.model(**self.batch).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state_bytes(self) -> int:
        """Return how much the optimizer keeps."""
        kept = (value for state in self.optimizer.state.values() for value in state.values())
        return sum(value.nbytes for value in kept if isinstance(value, torch.Tensor))


def trained(model: Any, shape: Shape, device: str, rate: float = 1e-4) -> Training:
    """Return the training step of a model."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate)
    return Training(model, shape.batch(model, device), optimizer, device)


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
    """Return the steps by name, the floor first; all but one share the frozen weights."""
    base = build(shape, device)
    steps: dict[str, Step] = {"floor": floor(sharing(base), shape, device)}
    for name, config in configs(shape, all_linear(base)).items():
        if re.search(only, name):
            steps[name] = trained(get_peft_model(sharing(base), config), shape, device)
    if re.search(only, "all weights"):
        steps["all weights"] = trained(build(shape, device), shape, device, 1e-6)
    return steps


def measure(table: Table, name: str, given: Any) -> None:
    """Measure one model; its variants are gone before the next one's are made."""
    shape = shape_of(name)
    slow = shape.large and not given.device.startswith("cuda")
    steps = variants(shape, given.device, given.only or (FEW_VARIANTS if slow else ""))
    kept = {variant: kept_bytes(step) // 2**20 for variant, step in steps.items()}  # a step each, which warms up
    rounds, warm = (max(1, given.rounds // 4), 0) if slow else (given.rounds, WARM)
    found = interleaved(steps, rounds, given.device, warm=warm)
    table.add(f"{title_of(name, given.threads)}: a training step", found, "floor", kept_MiB=kept)


def main() -> None:
    given = arguments(__doc__, model="minilm,stories260k,opt-350m,qwen2-0.5b", only="", rounds=12)
    table = Table(__file__, vars(given))
    for name in given.model.split(","):
        measure(table, name, given)
        table.write()


if __name__ == "__main__":
    main()
