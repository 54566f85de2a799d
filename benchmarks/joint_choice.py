"""The joint choice of components: 1,000 and 10,000 of them, from 384 examples, a tenth and a half of them picked.

Run: OMP_NUM_THREADS=1 python benchmarks/joint_choice.py [--examples 384] [--rounds 5] [--sizes 1000/100,1000/500]

The reference is the first size by its definition: a fresh solve for every candidate at every step. Every round draws
other numbers. The work is numpy's, on the processor.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
from _harness import Step, Table, arguments, interleaved

from rankwise.rules.joint import choose_jointly, curvature_of, joint_gain


class Choice:
    """A choice of so many components, by numbers that ``prepare`` draws."""

    def __init__(self, components: int, picks: int, examples: int) -> None:
        self.components, self.picks, self.examples = components, picks, examples
        self.seeds = count()
        self.values = self.lin = np.empty(0)

    def prepare(self) -> None:
        """Draw slopes and curvature."""
        generator = np.random.default_rng(next(self.seeds))
        self.values = generator.normal(size=(self.examples, self.components))
        self.lin = generator.normal(size=self.components)

    def __call__(self) -> object:
        curvature = curvature_of(self.values, 100 * self.examples)
        return choose_jointly(self.lin, curvature, [1] * self.components, self.picks)

    def by_definition(self) -> object:
        """Choose with a solve for every candidate at every step."""
        matrix = self.values.T @ self.values
        chosen: list[int] = []
        for _ in range(self.picks):
            rest = [j for j in range(self.components) if j not in chosen]
            chosen.append(max(rest, key=lambda j: joint_gain(self.lin, matrix, [*chosen, j])))
        return chosen


def variants(sizes: str, examples: int) -> tuple[dict[str, Step], dict[str, Step]]:
    """Return what is timed by name, and what comes before each."""
    steps: dict[str, Step] = {}
    prepare: dict[str, Step] = {}
    for size in sizes.split(","):
        components, picks = map(int, size.split("/"))
        choice: Any = Choice(components, picks, examples)
        name = f"{picks:,} of {components:,} components"
        if not steps:
            steps[f"{name}, by the definition"] = choice.by_definition
            prepare[f"{name}, by the definition"] = choice.prepare
        steps[name], prepare[name] = choice, choice.prepare
    return steps, prepare


def main() -> None:
    given = arguments(__doc__, examples=384, rounds=5, sizes="100/10,1000/100,1000/500,10000/1000", device=None)
    table = Table(__file__, vars(given))
    steps, prepare = variants(given.sizes, given.examples)
    found = interleaved(steps, given.rounds, prepare=prepare)
    table.add(f"{given.examples} examples", found, next(iter(steps)))
    table.write()


if __name__ == "__main__":
    main()
