"""The joint choice of components: 1,000 and 10,000 of them, from 384 examples, a tenth and a half of them picked.

Run: OMP_NUM_THREADS=1 python benchmarks/joint_choice.py [--examples 384] [--rounds 5]
Prints the processor time of one choice, the median of the rounds, and of one with a fresh solve per step for 100.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from rankwise.rules.joint import choose_jointly, curvature_of, joint_gain


def seconds(components: int, examples: int, picks: int, rounds: int) -> float:
    """Return the median processor time of a choice."""
    found = []
    for seed in range(rounds):
        generator = np.random.default_rng(seed)
        values = generator.normal(size=(examples, components))
        lin = generator.normal(size=components)
        began = time.process_time()
        choose_jointly(lin, curvature_of(values, 100 * examples), [1] * components, picks)
        found.append(time.process_time() - began)
    return statistics.median(found)


def fresh(components: int, examples: int, picks: int) -> float:
    """Return the time of the same greedy by its definition: a solve for every candidate at every step."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=(examples, components))
    matrix, lin = values.T @ values, generator.normal(size=components)
    chosen: list[int] = []
    began = time.process_time()
    for _ in range(picks):
        rest = [j for j in range(components) if j not in chosen]
        chosen.append(max(rest, key=lambda j: joint_gain(lin, matrix, [*chosen, j])))
    return time.process_time() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for components, picks in ((100, 10), (1_000, 100), (1_000, 500), (10_000, 1_000)):
        took = seconds(components, arguments.examples, picks, arguments.rounds)
        print(f"{picks:>5} of {components:>6} components: {1000 * took:8.1f} ms")
    slow = fresh(100, arguments.examples, 10)
    quick = seconds(100, arguments.examples, 10, arguments.rounds)
    print(f"by its definition, 10 of 100: {1000 * slow:.0f} ms, ratio {slow / quick:.0f}")


if __name__ == "__main__":
    main()
