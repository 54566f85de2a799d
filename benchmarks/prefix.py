"""A training step with LoRA in the upper half of a model, whose lower half is kept, against LoRA everywhere.

Run: OMP_NUM_THREADS=1 python benchmarks/prefix.py [--model minilm] [--rounds 11] [--device cpu]

All linear layers at r=8, dropout 0. ``first epoch`` runs the prefix and keeps it, ``later epochs`` takes it from
memory or from a file; ``a run of 3 epochs`` is their mean over three.
"""

from __future__ import annotations

import re
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from _harness import Step, Table, arguments, interleaved
from _shapes import Shape, build, shape_of, title_of
from peft import LoraConfig, get_peft_model
from steps import trained

import rankwise
from rankwise.method.targets import all_linear
from rankwise.prefix.cache import PrefixCache
from rankwise.prefix.rows import Rows
from rankwise.prefix.structure import prefix_of


def still(model: Any) -> Any:
    """Return a model without dropout."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


def stepper(shape: Shape, device: str, config: Any) -> tuple[Any, Step]:
    """Return a model and its training step."""
    model = get_peft_model(still(build(shape, device)), config)
    return model, trained(model, shape, device)


def emptied(step: Step, rows: Rows) -> Step:
    """Return the step of a first epoch: nothing is known."""

    def run() -> None:
        rows.clear()
        step()

    return run


def main() -> None:
    given = arguments(__doc__, model="minilm")
    shape, device = shape_of(given.model), given.device
    linear = all_linear(build(shape, device))
    block = {name: int(match[1]) for name in linear if (match := re.search(r"\.(\d+)\.", name))}
    blocks = 1 + max(block.values())
    sizes: dict[str, Any] = {"task_type": shape.task, "r": 8, "lora_alpha": 16, "target_modules": linear}
    # Not layers_to_transform, which PEFT doesn't ask of projections that are named in full.
    upper = {**sizes, "target_modules": [name for name in block if block[name] >= blocks // 2], "mode": "off"}
    steps = {
        "PEFT LoRA everywhere": stepper(shape, device, LoraConfig(**sizes))[1],
        "rankwise everywhere": stepper(shape, device, rankwise.HeteroLoraConfig(**sizes, mode="off"))[1],
    }
    steps["rankwise, upper half"] = stepper(shape, device, rankwise.HeteroLoraConfig(**upper))[1]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for name, rows in (
            ("first epoch", Rows(2**31, None)),
            ("later epochs, memory", Rows(2**31, None)),
            ("later epochs, file", Rows(0, Path(folder) / "rows")),
        ):
            model, step = stepper(shape, device, rankwise.HeteroLoraConfig(**upper))
            stack.enter_context(PrefixCache(prefix_of(model), rows).attached())
            step()
            if rows.pending:
                rows.flush()
            steps[f"rankwise, upper half, cache, {name}"] = emptied(step, rows) if "first" in name else step
        found = interleaved(steps, given.rounds, device)
    first, later = (found[f"rankwise, upper half, cache, {name}"] for name in ("first epoch", "later epochs, memory"))
    found["rankwise, upper half, cache, a run of 3 epochs"] = [
        (a + 2 * b) / 3 for a, b in zip(first, later, strict=True)
    ]
    table = Table(__file__, vars(given))
    table.add(f"{title_of(given.model, given.threads)}: a training step", found, "PEFT LoRA everywhere")
    table.write()


if __name__ == "__main__":
    main()
