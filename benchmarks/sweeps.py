"""A training step over the floor, by the depth of the model and by the number of paths.

Run: OMP_NUM_THREADS=1 python benchmarks/sweeps.py [--depths 6,12,24,48] [--counts 10,30,100,300,1000] [--rounds 5]

LLaMAs of narrow blocks. By depth: rank 2 on all projections, and three shortcuts in each block besides. By number: that
many paths of rank 2, spread evenly over the projections of --blocks blocks, the lowest of them always among them, so
that the floor is one for all. For the floor see ``steps.py``.
"""

from __future__ import annotations

from typing import Any

from _harness import Step, Table, arguments, interleaved
from _shapes import build, shape_of, sharing, title_of
from peft import LoraConfig, get_peft_model
from steps import floor, trained, variants

import rankwise
from rankwise.method.targets import all_linear

BY_DEPTH = r"all linear.*r=2"


def spread(names: list[str], count: int) -> list[str]:
    """Return that many of some names, evenly spread, the first among them."""
    assert 0 < count <= len(names), f"{count} of {len(names)} projections: give more --blocks"
    return [names[index * len(names) // count] for index in range(count)]


def by_count(name: str, counts: list[int], device: str) -> dict[str, Step]:
    """Return the steps of so many paths in one model."""
    shape = shape_of(name)
    base = build(shape, device)
    steps: dict[str, Step] = {"floor": floor(sharing(base), shape, device)}
    for count in counts:
        fields: dict[str, Any] = {"task_type": shape.task, "r": 2, "lora_alpha": 4}
        fields["target_modules"] = spread(all_linear(base), count)
        for title, config in (
            (f"PEFT LoRA, {count} paths", LoraConfig(**fields)),
            (f"rankwise, {count} paths", rankwise.HeteroLoraConfig(mode="off", **fields)),
        ):
            steps[title] = trained(get_peft_model(sharing(base), config), shape, device)
    return steps


def main() -> None:
    given = arguments(__doc__, depths="6,12,24,48", counts="10,30,100,300,1000", blocks=143, rounds=5)
    table = Table(__file__, vars(given))
    for depth in map(int, given.depths.split(",")):
        name = f"narrow-{depth}"
        found = interleaved(variants(shape_of(name), given.device, BY_DEPTH), given.rounds, given.device, warm=1)
        table.add(f"{title_of(name, given.threads)}: a training step", found, "floor")
    name = f"narrow-{given.blocks}"
    steps = by_count(name, list(map(int, given.counts.split(","))), given.device)
    found = interleaved(steps, given.rounds, given.device, warm=1)
    table.add(f"{title_of(name, given.threads)}: a training step by number of paths", found, "floor")
    table.write()


if __name__ == "__main__":
    main()
