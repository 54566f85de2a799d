"""Merges and injections to draw, made by hand, and singular values and gradients that go with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rankwise import Inject, Merge
from rankwise.rules.edits import Edit
from rankwise.rules.records import EditRecord

Line = dict[str, Any]


def merge(first: str, second: str) -> Edit:
    return Merge(f"layers.{first}.layer", f"layers.{second}.layer")


def inject(block: int) -> Edit:
    return Inject(f"layers.{block}.layer")


def layers(*spans: str | int) -> list[str]:
    return [f"layers.{span}.layer" for span in spans]


def lora(*blocks: int) -> list[str]:
    return [f"layers.{block}.{row}" for block in blocks for row in ("query", "value")]


def edits(
    made: Sequence[Edit],
    before: Sequence[str],
    chosen: Sequence[str],
    *,
    step: int = 10,
    scores: dict[str, float | None] | None = None,
    due: str = "merge",
    frozen: int = 0,
) -> EditRecord:
    """One record of an ``Editor``; every ``layer`` path scored 0.5 unless ``scores`` says otherwise."""
    values = {name: 0.5 for name in before if name.endswith(".layer")} | (scores or {})
    return EditRecord(
        step=step,
        due=due,
        edits=list(made),
        metric="sfs",
        scores=values,
        unscored=[name for name, value in values.items() if value is None],
        before=list(before),
        chosen=list(chosen),
        counts={"enabled": 100 * len(chosen), "frozen": frozen},
    )


def edited_history(blocks: int = 6) -> list[EditRecord]:
    """IMLoR2C with two merges that chain and one injection, a merge that was skipped at the end."""
    start = layers(*range(blocks))
    once = layers(0, "1-2", *range(3, blocks))
    mixed = [*layers(0, "1-2", *range(3, blocks - 1)), *lora(blocks - 1)]
    twice = [*layers(0, "1-3", *range(4, blocks - 1)), *lora(blocks - 1)]
    return [
        edits([merge("1", "2")], start, once, step=10, scores={"layers.1.layer": 0.25, "layers.0.layer": None}),
        edits([inject(blocks - 1)], once, mixed, step=10, due="inject"),
        edits([merge("1-2", "3")], mixed, twice, step=20),
        edits([], twice, twice, step=30),
    ]


def epochs_of_spectra(epochs: int = 4, blocks: int = 6, r: int = 8) -> list[Line]:
    """Singular values that grow with the epoch, halve with the place, and differ by block."""
    return [
        {
            "epoch": float(epoch),
            "step": 10 * epoch,
            "paths": {
                f"layers.{block}.layer": [epoch * (1 + block) / 2**place for place in range(r)]
                for block in range(blocks)
            },
        }
        for epoch in range(1, epochs + 1)
    ]


def epochs_of_gradients(epochs: int = 4, blocks: int = 6) -> list[Line]:
    """Gradients of LoR2C that are ``6 - block`` times those of LoRA, at twice the norm of ``B``."""
    linear = {"grad_A": 1.0, "grad_B": 1.0, "size_A": 10, "size_B": 30, "norm_B": 1.0}
    return [
        {
            "epoch": float(epoch),
            "step": 10 * epoch,
            "steps": 10,
            "blocks": {
                str(block): {
                    "layer": {**linear, "grad_A": 6.0 - block, "grad_B": 6.0 - block, "norm_B": 2.0},
                    "linear": linear,
                }
                for block in range(blocks)
            },
        }
        for epoch in range(1, epochs + 1)
    ]
