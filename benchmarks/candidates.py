"""Building many candidate paths, and one search among them that switches a quarter.

Run: OMP_NUM_THREADS=1 python benchmarks/candidates.py [--blocks 100] [--rounds 5]

A LLaMA of narrow blocks, each with LoRA on its seven projections and three shortcuts, so 100 blocks have 1,000 paths.
``random`` scores cost nothing: what is timed is the choice, the switches and the record.
"""

from __future__ import annotations

from typing import Any

import torch
from _harness import Table, arguments, interleaved, narrow
from peft import LoraConfig, get_peft_model

import rankwise
from rankwise.method.targets import all_linear


def main() -> None:
    given = arguments(__doc__, blocks=100, rounds=5)
    bases = [narrow(given.blocks) for _ in range(2)]
    linear = all_linear(bases[0])
    options: dict[str, Any] = {"r": 2, "target_modules": linear}
    searched = {"shortcuts": ["res1", "res2", "in"], "proxy": "random", "budget": 0.25, **options}

    def build(make: Any, **fields: Any) -> None:
        get_peft_model(bases[0], make(**fields)).unload()

    model = get_peft_model(bases[1], rankwise.HeteroLoraConfig(**searched)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    allocator = rankwise.Allocator(model, optimizer)
    count = len(rankwise.named_paths(model))
    steps = {
        f"PEFT LoRA, {len(linear)} layers built and taken off": lambda: build(LoraConfig, **options),
        f"rankwise, {count} paths built and taken off": lambda: build(rankwise.HeteroLoraConfig, **searched),
        f"a search among {count} paths": allocator.search,
    }
    table = Table(__file__, vars(given))
    table.add(f"{given.blocks} narrow blocks", interleaved(steps, given.rounds), next(iter(steps)))
    table.write()


if __name__ == "__main__":
    main()
