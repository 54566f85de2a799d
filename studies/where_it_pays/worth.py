"""The worth of every path alone, and how well each score taken at the start ranks it.

Run: python -m studies.where_it_pays.worth MODEL DATA [--seeds 0 1] [--proxies grad_norm newton] [--out FILE]
MODEL is the folder of stories260k, DATA that of WikiText-2. Every path is trained alone; its worth is the fall of the
test loss. What is in FILE is not run again. About eight minutes a seed on one core. With --proxies nothing is trained:
all paths are scored at the start, at the ranks that they were trained with.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import torch
from peft import get_peft_model
from studies.where_it_pays.language import TASK_TYPE, Language
from studies.where_it_pays.layout import alone, spent
from studies.where_it_pays.records import Records
from studies.where_it_pays.training import Candidates, adapter_config, train, trained

import rankwise

SIZE, STEPS, RATE, PROBE = 400, 60, 3e-2, 24
SETTINGS = {"steps": STEPS, "rate": RATE, "batch": [8, 128], "size": SIZE, "scale": 2.0, "test_rows": 512}


def run_alone(task: Language, name: str, candidates: Candidates, seed: int) -> dict[str, object]:
    """Train one path alone and return its record."""
    layout = alone(candidates.costs, name, SIZE)
    torch.manual_seed(seed)
    model = get_peft_model(task.model(), adapter_config(layout, candidates, seed=seed, task_type=TASK_TYPE))
    seconds = train(model, task.batches(seed), steps=STEPS, rate=RATE)
    counts = trained(model)
    assert counts["adapter"] == spent(layout, candidates.costs)
    return {
        "path": name,
        "seed": seed,
        "rate": RATE,
        "rank": layout[name],
        "parameters": counts["adapter"],
        "test_loss": task.loss(model),
        "seconds": round(seconds, 2),
    }


def score(task: Language, candidates: Candidates, proxy: str, seed: int) -> dict[str, object]:
    """Score all paths at the start and return the record."""
    ranks = {name: alone(candidates.costs, name, SIZE)[name] for name in candidates.costs}
    model = get_peft_model(task.model(), adapter_config(ranks, candidates, seed=seed, task_type=TASK_TYPE))
    began = time.perf_counter()
    values = rankwise.score_paths(model, task.probe(seed, PROBE), proxy=proxy, seed=seed)
    return {"proxy": proxy, "seed": seed, "seconds": round(time.perf_counter() - began, 2), "values": values}


def main() -> None:
    """Train every path alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--proxies", nargs="+", default=[])
    parser.add_argument("--out", type=Path, default=Path("results/where-it-pays/worth.json"))
    arguments = parser.parse_args()
    task = Language(arguments.model, arguments.data)
    candidates = Candidates(task.model())
    records = Records(arguments.out, SETTINGS)
    if records.find({"path": "base"}) is None:
        records.add({"path": "base", "parameters": 0, "test_loss": task.loss(task.model())})
    for seed, proxy in itertools.product(arguments.seeds, arguments.proxies):
        if records.find({"proxy": proxy, "seed": seed}) is None:
            records.add(score(task, candidates, proxy, seed))
    for seed in arguments.seeds if not arguments.proxies else []:
        for name in candidates.costs:
            if records.find({"path": name, "seed": seed}) is None:
                began = time.perf_counter()
                record = run_alone(task, name, candidates, seed)
                records.add(record)
                print(
                    f"{name}, seed {seed}: {record['test_loss']:.4f} ({time.perf_counter() - began:.0f} s)", flush=True
                )


if __name__ == "__main__":
    main()
