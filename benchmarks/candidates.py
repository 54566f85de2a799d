"""Building many candidate paths, one search among them that switches a quarter, and the parts of that search.

Run: OMP_NUM_THREADS=1 python benchmarks/candidates.py [--blocks 100] [--rounds 5]

A LLaMA of narrow blocks, each with LoRA on its seven projections and three shortcuts, so 100 blocks have 1,000 paths.
``random`` scores need no pass through the model. The reallocation switches from one quarter of the paths to another.
"""

from __future__ import annotations

from typing import Any

from _harness import Step, Table, arguments, interleaved
from _shapes import build, shape_of
from peft import LoraConfig, get_peft_model
from searching import optimizer_of, reallocating

import rankwise
from rankwise.method.targets import all_linear
from rankwise.paths.path_set import path_set
from rankwise.scores.proxies import score_without_data


def parts(make: Any) -> dict[str, Step]:
    """Return a search, and its parts, of the models that are made."""
    model, switched = make(), make()
    optimizer = optimizer_of(model)
    allocator = rankwise.Allocator(model, optimizer)
    paths = path_set(model)
    names, costs = list(paths.paths), paths.costs()
    scores = score_without_data("random", names, seed=0).values

    def search(kept: Any = (model, optimizer)) -> None:  # which the allocator holds weakly
        allocator.search()

    return {
        f"a search among {len(names)} paths": search,
        "  of which: random scores": lambda: score_without_data("random", names, seed=0),
        "  of which: the choice": lambda: allocator.policy.choose(scores, costs, 0, limit=allocator.limit),
        "  of which: parameters counted": paths.counts,
        f"a reallocation, a quarter of {len(names)} paths": reallocating(switched, optimizer_of(switched)),
    }


def main() -> None:
    given = arguments(__doc__, blocks=100, rounds=5)
    shape = shape_of(f"narrow-{given.blocks}")
    base = build(shape, given.device)
    linear = all_linear(base)
    options: dict[str, Any] = {"r": 2, "target_modules": linear}
    searched = {"shortcuts": ["res1", "res2", "in"], "mode": "dynamic", "proxy": "random", **options}

    def candidates() -> Any:
        return get_peft_model(build(shape, given.device), rankwise.HeteroLoraConfig(**searched)).train()

    timed = parts(candidates)
    steps: dict[str, Step] = {
        f"PEFT LoRA, {len(linear)} layers built and taken off": lambda: get_peft_model(
            base, LoraConfig(**options)
        ).unload(),
        f"rankwise, {10 * given.blocks} paths built and taken off": lambda: get_peft_model(
            base, rankwise.HeteroLoraConfig(**searched)
        ).unload(),
        **timed,
    }
    table = Table(__file__, vars(given))
    table.add(f"{given.blocks} narrow blocks", interleaved(steps, given.rounds, given.device), next(iter(steps)))
    table.write()


if __name__ == "__main__":
    main()
