"""What one search costs by each proxy, and one reallocation, in training steps.

Run: OMP_NUM_THREADS=1 python benchmarks/searching.py [--model minilm] [--batches 2] [--rounds 5] [--device cpu]

Candidates of rank 2 on all projections, a quarter of them on. A search scores all by --batches batches of its own (a
probe), chooses, and switches. The reallocation is a search's last part alone: from one quarter of the paths to another.
The reference is a training step of the same paths, all on.
"""

from __future__ import annotations

from itertools import cycle
from typing import Any

import torch
from _harness import Step, Table, arguments, interleaved, precision
from _shapes import Shape, build, shape_of, sharing, title_of
from peft import get_peft_model
from steps import trained

import rankwise
from rankwise.edits import apply_to_paths_
from rankwise.method.targets import all_linear
from rankwise.paths.path_set import path_set
from rankwise.rules.edits import switches
from rankwise.rules.proxies import PROXIES

STEP = "a training step"


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    """Return an optimizer that owns what trains in a model."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)


def searching(model: Any, shape: Shape, device: str, batches: int) -> Step:
    """Return one search of a model."""
    optimizer = optimizer_of(model)
    probed = [shape.batch(model, device)] * batches
    allocator = rankwise.Allocator(model, optimizer, batches=probed, autocast=lambda: precision(device))

    def search(kept: Any = (model, optimizer)) -> None:  # which the allocator holds weakly
        allocator.search()

    return search


def reallocating(model: Any, optimizer: torch.optim.Optimizer) -> Step:
    """Return a switch from one quarter of the paths to another."""
    paths = path_set(model)
    names = list(paths.paths)
    quarters = cycle([names[::4], names[1::4]])

    def switch() -> None:
        apply_to_paths_(paths, switches({path.name for path in paths.enabled}, next(quarters)), optimizer)

    switch()  # from the first choice, which is neither
    return switch


def variants(shape: Shape, device: str, batches: int) -> dict[str, Step]:
    """Return what is timed by name."""
    base = build(shape, device)
    fields: dict[str, Any] = {"task_type": shape.task, "r": 2, "lora_alpha": 4, "target_modules": all_linear(base)}

    def candidates(**more: Any) -> Any:
        return get_peft_model(sharing(base), rankwise.HeteroLoraConfig(**fields, **{"mode": "dynamic", **more})).train()

    steps: dict[str, Step] = {STEP: trained(candidates(mode="off"), shape, device)}
    for proxy in PROXIES:
        model = candidates(proxy=proxy, scoring="probe", score_batches=batches)
        steps[f"a search by {proxy}"] = searching(model, shape, device, batches)
    switched = candidates(proxy="constant")
    steps["a reallocation"] = reallocating(switched, optimizer_of(switched))
    return steps


def main() -> None:
    given = arguments(__doc__, model="minilm", batches=2, rounds=5)
    table = Table(__file__, vars(given))
    found = interleaved(variants(shape_of(given.model), given.device, given.batches), given.rounds, given.device)
    table.add(f"{title_of(given.model, given.threads)}, {given.batches} batches a search", found, STEP)
    table.write()


if __name__ == "__main__":
    main()
