"""The worth of every path, alone or as what the others lack, and how well each score taken at the start ranks it.

Run: python -m studies.where_it_pays.worth MODEL DATA [--seeds 0 1] [--proxies grad_norm newton] [--out FILE]
     python -m studies.where_it_pays.worth MODEL DATA --proxies grad_norm newton --after 60
     python -m studies.where_it_pays.worth MODEL DATA --left-out --out results/where-it-pays/left-out.json
MODEL is the folder of stories260k, DATA that of WikiText-2. Every path is trained alone; its worth is the fall of the
test loss. With --left-out all are trained but one, which is worth the rise of the test loss. What is in FILE is not run
again. About eight minutes a seed on one core, 15 with --left-out. With --proxies all paths are scored, at the ranks
that they were trained with: at the start, or after all were trained together for so many steps.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import torch
from peft import get_peft_model
from studies.where_it_pays.language import TASK_TYPE, Language
from studies.where_it_pays.layout import Layout, alone, spent
from studies.where_it_pays.records import Records
from studies.where_it_pays.training import Candidates, adapter_config, train, trained

import rankwise

SIZE, STEPS, PROBE = 400, 60, 24
ALONE, TOGETHER = 3e-2, 1.5e-2  # rates; the second is the best that the curve's arms of 13,440 parameters have
SETTINGS = {"steps": STEPS, "batch": [8, 128], "size": SIZE, "scale": 2.0, "test_rows": 512}


def fit(task: Language, layout: Layout, candidates: Candidates, *, seed: int, rate: float) -> dict[str, object]:
    """Train a layout and return what was found."""
    torch.manual_seed(seed)
    model = get_peft_model(task.model(), adapter_config(layout, candidates, seed=seed, task_type=TASK_TYPE))
    seconds = train(model, task.batches(seed), steps=STEPS, rate=rate)
    counts = trained(model)
    assert counts["adapter"] == spent(layout, candidates.costs)
    return {"parameters": counts["adapter"], "test_loss": task.loss(model), "seconds": round(seconds, 2)}


def run_alone(task: Language, name: str, candidates: Candidates, seed: int) -> dict[str, object]:
    """Train one path alone and return its record."""
    layout = alone(candidates.costs, name, SIZE)
    found = fit(task, layout, candidates, seed=seed, rate=ALONE)
    return {"path": name, "seed": seed, "rate": ALONE, "rank": layout[name], **found}


def run_without(task: Language, name: str, candidates: Candidates, seed: int) -> dict[str, object]:
    """Train all paths but one, or ``nothing``, and return the record; what stays starts as it does beside all."""
    layout = {other: rank for other, rank in every(candidates).items() if other != name}
    return {"without": name, "seed": seed, "rate": TOGETHER, **fit(task, layout, candidates, seed=seed, rate=TOGETHER)}


def every(candidates: Candidates) -> Layout:
    """Return all paths with the ranks that each is trained with alone."""
    return {name: alone(candidates.costs, name, SIZE)[name] for name in candidates.costs}


def score(task: Language, candidates: Candidates, proxy: str, seed: int, after: int | None) -> dict[str, object]:
    """Score all paths, at the start or after so many steps of training them all, and return the record."""
    ranks = every(candidates)
    torch.manual_seed(seed)
    model = get_peft_model(task.model(), adapter_config(ranks, candidates, seed=seed, task_type=TASK_TYPE))
    if after is not None:
        train(model, task.batches(seed), steps=after, rate=TOGETHER)
    began = time.perf_counter()
    values = rankwise.score_paths(model, task.probe(seed, PROBE), proxy=proxy, seed=seed)
    seconds = round(time.perf_counter() - began, 2)
    return {"proxy": proxy, "seed": seed, "after": after, "seconds": seconds, "values": values}


def main() -> None:
    """Train every path alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--proxies", nargs="+", default=[])
    parser.add_argument("--after", type=int, help="steps of training before the proxies score")
    parser.add_argument("--left-out", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results/where-it-pays/worth.json"))
    arguments = parser.parse_args()
    if arguments.after is not None and (arguments.after < 1 or not arguments.proxies):
        parser.error("--after is a number of steps of at least 1, and says when --proxies score")
    task = Language(arguments.model, arguments.data)
    candidates = Candidates(task.model())
    rate = TOGETHER if arguments.left_out else ALONE
    records = Records(arguments.out, {**SETTINGS, "rate": rate})
    if not arguments.left_out and records.find({"path": "base"}) is None:
        records.add({"path": "base", "parameters": 0, "test_loss": task.loss(task.model())})
    for seed, proxy in itertools.product(arguments.seeds, arguments.proxies):
        if records.find({"proxy": proxy, "seed": seed, "after": arguments.after}) is None:
            records.add(score(task, candidates, proxy, seed, arguments.after))
    key, names, run = ("path", [*candidates.costs], run_alone)
    if arguments.left_out:
        key, names, run = ("without", ["nothing", *names], run_without)
    for seed in arguments.seeds if not arguments.proxies else []:
        for name in names:
            if records.find({key: name, "seed": seed}) is None:
                began = time.perf_counter()
                record = run(task, name, candidates, seed)
                records.add(record)
                print(
                    f"{name}, seed {seed}: {record['test_loss']:.4f} ({time.perf_counter() - began:.0f} s)", flush=True
                )


if __name__ == "__main__":
    main()
