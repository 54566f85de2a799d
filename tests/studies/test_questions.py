"""Tables across arms and seeds, against hand-made runs."""

from __future__ import annotations

from typing import Any

from studies.where_it_pays.questions import seed_against_seed, whole_against_parts


def run(arm: str, seed: int, loss: float, ranks: dict[str, int], rate: float = 0.01) -> dict[str, Any]:
    return {"arm": arm, "budget": 10, "rate": rate, "seed": seed, "test_loss": loss, "ranks": ranks}


RUNS = [
    *(run("joint-whole", seed, 1.0 + seed, {"a": 1, "b": 1 + seed}) for seed in range(3)),
    *(run("joint-whole", seed, 9.0, {}, rate=0.1) for seed in range(3)),  # a worse rate
    *(run("layer", seed, 1.5 + seed, {"c": 2}) for seed in range(2)),
    run("all-linear", 1, 4.0, {"a": 1}),
]


def test_the_whole_space_is_paired_with_each_part_at_the_better_rates() -> None:
    header, rows = whole_against_parts(RUNS)
    assert header == [
        "parameters",
        *(f"joint-whole minus {p} (n)" for p in ("joint-linear", "layer", "everything", "all-linear")),
    ]
    assert rows == [["10", "", "-0.500 [-0.500, -0.500] (2)", "", "-2.000 (one seed)"]]


def test_seeds_are_compared_by_the_components_they_share() -> None:
    _, rows = seed_against_seed(RUNS)
    # {a, b} and {a, b, b} share 2 of 3, {a, b} and {a, b, b, b} 2 of 4, the other two 3 of 4
    assert rows == [["10", "joint-whole", "3", "2", "0.50, 0.64, 0.75", "1.000"]]
