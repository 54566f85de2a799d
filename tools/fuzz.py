"""Damages what this library reads, in many ways, and counts what reading it gives.

    python tools/fuzz.py                            # the counts below
    python tools/fuzz.py --adapters 100 --runs 0 --recipes 0 --data 0 --configs 0

An adapter must load as it was saved or be refused with words; a run must end as the undamaged one or be refused; a
finished run must be exported, drawn, listed and predicted with, or refused. Recipes, data files and values of the
configs must be read, or refused with words that name what is wrong. What is raised besides, hangs, or comes out
different although digests were there, is printed and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import copy
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # a damaged name must not be asked for
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests.damage

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from peft import PeftModel
from tests.damage import Draw, adapter_outcome, damage, resume_outcome, save_adapters, save_runs, use_outcome
from tests.malformed import (
    STARTS,
    config_outcome,
    damage_data,
    damage_recipe,
    data_outcome,
    odd_fields,
    recipe_outcome,
    small_recipe,
)
from tests.models import logits, tiny_bert

from rankwise.runs.dryrun import tiny_tokenizer

Check = Callable[[], str]
Attempt = Callable[[Draw, Path], tuple[str, Check]]  # what was done, and what finds out how it ends


def tried(name: str, count: int, attempt: Attempt, *, start: int) -> Counter[str]:
    """Make so many attempts, each in a folder of its own, and count the outcomes."""
    counts: Counter[str] = Counter()

    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def once(data: Any) -> None:
        with tempfile.TemporaryDirectory() as room:
            told, check = attempt(data.draw, Path(room))
            try:
                word = check()
            except Exception as error:  # noqa: BLE001 (whatever it was, it is counted)
                word = f"raw {type(error).__name__}"
                print(ascii(f"{name}, {told}: {word}: {str(error)[:300]}"), flush=True)
            counts[word] += 1
            if word == "different":
                print(f"{name}, {told}: different", flush=True)

    once()
    return counts


def damaged_copy(folder: Path, outcome: Callable[[Path], str]) -> Attempt:
    """Return the attempt that damages a copy of a folder."""

    def attempt(draw: Draw, room: Path) -> tuple[str, Check]:
        copied = shutil.copytree(folder, room / "folder")
        return damage(draw, copied), lambda: outcome(copied)

    return attempt


def malformed_recipe(content: dict[str, Any]) -> Attempt:
    """Return the attempt that damages a recipe, and makes a plan of it where it is read all the same."""

    def attempt(draw: Draw, room: Path) -> tuple[str, Check]:
        told = damage_recipe(draw, copy.deepcopy(content), room / "recipe.yaml")
        plans = draw(st.integers(0, 3)) == 0
        return told, lambda: recipe_outcome(room / "recipe.yaml", plan=plans)

    return attempt


def malformed_data(draw: Draw, room: Path) -> tuple[str, Check]:
    """Damage a file of data."""
    told, spec = damage_data(draw, room)
    return told, lambda: data_outcome(spec, tiny_tokenizer())


def odd_config(name: str) -> Attempt:
    """Return the attempt that gives a config odd values, and puts it on a model where it is valid all the same."""

    def attempt(draw: Draw, room: Path) -> tuple[str, Check]:
        fields = odd_fields(draw, name)
        return f"{fields!r:.200}", lambda: config_outcome(name, fields, build=True)

    return attempt


def attempts(asked: argparse.Namespace, room: Path) -> dict[str, tuple[int, Attempt]]:
    """Return everything that was asked for, by name, with its share of the counts."""
    found: dict[str, tuple[int, Attempt]] = {}
    adapters = save_adapters(room) if asked.adapters else {}
    for name, folder in adapters.items():
        expected = logits(PeftModel.from_pretrained(tiny_bert(4), str(folder)))
        check = lambda copied, expected=expected: adapter_outcome(copied, expected)  # noqa: E731
        found[name] = asked.adapters // len(adapters), damaged_copy(folder, check)
    if asked.runs:
        recipe, runs = save_runs(room)
        resumed = lambda copied: resume_outcome(recipe, copied, runs["finished"])  # noqa: E731
        found["interrupted run"] = asked.runs, damaged_copy(runs["interrupted"], resumed)
        found["finished run"] = asked.runs, damaged_copy(runs["finished"], use_outcome)
    if asked.recipes:
        found["recipe"] = asked.recipes, malformed_recipe(small_recipe(room / "small").to_dict())
    if asked.data:
        found["data"] = asked.data, malformed_data
    if asked.configs:
        found |= {f"config {name}": (asked.configs // len(STARTS), odd_config(name)) for name in STARTS}
    return found


def main() -> int:
    """Try everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=1000, help="damaged adapters")
    parser.add_argument("--runs", type=int, default=100, help="interrupted runs, and as many finished ones")
    parser.add_argument("--recipes", type=int, default=1000, help="malformed recipes, a quarter of them planned")
    parser.add_argument("--data", type=int, default=1000, help="malformed files of data")
    parser.add_argument("--configs", type=int, default=1000, help="configs with odd values")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        table = {
            name: tried(name, count, attempt, start=asked.seed)
            for name, (count, attempt) in attempts(asked, Path(room)).items()
        }
    for name, counts in table.items():
        print(f"{name:18}", ", ".join(f"{word} {count}" for word, count in sorted(counts.items())))
    bad = sum(
        count
        for name, counts in table.items()
        for word, count in counts.items()
        if word.startswith("raw") or (word == "different" and not name.endswith("0.1"))
    )
    print(f"{bad} of {sum(sum(counts.values()) for counts in table.values())} were neither right nor refused")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
