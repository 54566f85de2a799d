"""Loss against the number of parameters on classification tasks: fixed placements and plans on all-MiniLM-L6-v2.

Run: python -m studies.where_it_pays.classify DATA --task trec [--budgets 9216] [--arms all-linear] [--seeds 0 1 2]
     [--rates 0.006 0.015] [--out FILE]
     python -m studies.where_it_pays.classify DATA --task trec --again results/where-it-pays/classify.json --out FILE
DATA holds the folders trec and mrpc. In every arm the head is trained alone for 40 steps first. What is in FILE is not
run again; ``--again`` runs all of a task that another file holds. On one core about 45 seconds a run of trec, three
minutes of mrpc.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from studies.where_it_pays.arms import Choice, choose
from studies.where_it_pays.asking import add_grid, asked
from studies.where_it_pays.classification import HEAD_STEPS, SOURCES, TASK_TYPE, Classification
from studies.where_it_pays.records import Records
from studies.where_it_pays.training import Candidates, adapter_config, train, trained

STEPS, PROBE = 200, 24
SETTINGS = {"steps": STEPS, "batch": 16, "scale": 2.0, "probe_batches": PROBE, "head_steps": HEAD_STEPS}


def run_arm(task: Classification, key: dict[str, Any], options: Mapping[str, Any], records: Records) -> dict[str, Any]:
    """Choose, train, and return the run's record."""
    left = dict(options)
    seed = key["seed"]
    base = task.model(seed)
    candidates = Candidates(base)
    began = time.perf_counter()
    known = records.find({name: value for name, value in key.items() if name != "rate"})
    if known is None:
        probe = task.probe(seed, left.pop("probe_batches", PROBE))
        choice = choose(
            key["arm"],
            task.model(seed, left.pop("plan_head_steps", HEAD_STEPS)),
            probe,
            candidates,
            budget=key["budget"],
            seed=seed,
            options=left,
        )
    else:  # at another rate
        choice = Choice(known["ranks"], known["about"])
    choosing = time.perf_counter() - began
    torch.manual_seed(seed)
    config = adapter_config(choice.layout, candidates, seed=seed, task_type=TASK_TYPE)
    model = get_peft_model(base, config)
    seconds = train(model, task.batches(seed), steps=STEPS, rate=key["rate"])
    counts = trained(model)
    assert counts["adapter"] <= key["budget"], (counts, key)
    held, held_right = task.measure(model, task.held_out)
    test, test_right = task.measure(model, task.test)
    return {
        **key,
        "parameters": counts["adapter"],
        "head": counts["head"],
        "held_out_loss": held,
        "held_out_accuracy": held_right,
        "test_loss": test,
        "test_accuracy": test_right,
        "seconds": round(seconds, 1),
        "choosing_seconds": round(choosing, 1),
        "ranks": choice.layout,
        "about": choice.about,
    }


def main() -> None:
    """Run what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--task", choices=sorted(SOURCES), required=True)
    add_grid(parser, budgets=[2304, 9216, 41472], rates=[6e-3, 1.5e-2], out="results/where-it-pays/classify.json")
    arguments = parser.parse_args()
    task = Classification(arguments.task, arguments.data)
    records = Records(arguments.out, SETTINGS)
    for key, options in asked(arguments, task=arguments.task):
        if records.find(key) is None:
            record = run_arm(task, key, options, records)
            records.add(record)
            shown = (*key, "parameters", "held_out_loss", "test_loss", "test_accuracy", "seconds")
            print({name: record[name] for name in shown}, flush=True)


if __name__ == "__main__":
    main()
