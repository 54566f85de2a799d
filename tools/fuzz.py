"""Damages adapter and run folders in many ways and counts what loading, resuming, exporting and drawing them gives.

    python tools/fuzz.py                            # 1,000 adapters, 100 interrupted and 100 finished runs
    python tools/fuzz.py --adapters 100 --runs 0

An adapter must load as it was saved or be refused with words; a run must end as the undamaged one or be refused. What
is raised besides, hangs, or comes out different although digests were there, is printed and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests.damage

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from peft import PeftModel
from tests.damage import adapter_outcome, damage, resume_outcome, save_adapters, save_runs, use_outcome
from tests.models import logits, tiny_bert


def tried(name: str, count: int, folder: Path, outcome: Callable[[Path], str], *, start: int) -> Counter[str]:
    """Damage a folder so many times, each time anew, and count the outcomes."""
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
            copy = shutil.copytree(folder, Path(room) / "folder")
            told = damage(data.draw, copy)
            try:
                word = outcome(copy)
            except Exception as error:  # noqa: BLE001 (whatever it was, it is counted)
                word = f"raw {type(error).__name__}"
                print(f"{name}, {told}: {word}: {str(error)[:200]}", flush=True)
            counts[word] += 1
            if word == "different":
                print(f"{name}, {told}: different", flush=True)

    once()
    return counts


def main() -> int:
    """Try everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    table: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as room:
        adapters = save_adapters(Path(room)) if asked.adapters else {}
        for name, folder in adapters.items():
            expected = logits(PeftModel.from_pretrained(tiny_bert(4), str(folder)))
            check = lambda copy, expected=expected: adapter_outcome(copy, expected)  # noqa: E731
            table[name] = tried(name, asked.adapters // len(adapters), folder, check, start=asked.seed)
        if asked.runs:
            recipe, runs = save_runs(Path(room))
            resumed = lambda copy: resume_outcome(recipe, copy, runs["finished"])  # noqa: E731
            table["interrupted run"] = tried("run", asked.runs, runs["interrupted"], resumed, start=asked.seed)
            table["finished run"] = tried("run", asked.runs, runs["finished"], use_outcome, start=asked.seed)
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
