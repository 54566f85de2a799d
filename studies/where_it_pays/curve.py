"""Loss against the number of parameters: fixed placements and plans on a small causal LM.

Run: python -m studies.where_it_pays.curve MODEL DATA [--budgets 1500 4000] [--arms all-linear layer] [--seeds 0 1 2]
     [--rates 0.015 0.03] [--out FILE]
     python -m studies.where_it_pays.curve MODEL DATA --again results/where-it-pays/curve.json --out FILE
MODEL is the folder of stories260k, DATA that of WikiText-2. What is in FILE is not run again; ``--again`` runs all
that another file holds. About 25 seconds a run on one core.
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
from studies.where_it_pays.language import TASK_TYPE, Language
from studies.where_it_pays.records import Records
from studies.where_it_pays.training import Candidates, adapter_config, train, trained

STEPS, PROBE = 150, 24
SETTINGS = {"steps": STEPS, "batch": [8, 128], "scale": 2.0, "probe_batches": PROBE, "test_rows": 512}


def run_arm(
    task: Language, candidates: Candidates, key: dict[str, Any], options: Mapping[str, Any], records: Records
) -> dict[str, Any]:
    """Choose, train, and return the run's record."""
    left = dict(options)
    base, seed = task.model(), key["seed"]
    began = time.perf_counter()
    known = records.find({name: value for name, value in key.items() if name != "rate"})
    if known is None:
        probe = task.probe(seed, left.pop("probe_batches", PROBE))
        choice = choose(key["arm"], base, probe, candidates, budget=key["budget"], seed=seed, options=left)
    else:  # at another rate
        choice = Choice(known["ranks"], known["about"])
    choosing = time.perf_counter() - began
    torch.manual_seed(seed)
    config = adapter_config(choice.layout, candidates, seed=seed, task_type=TASK_TYPE)
    model = get_peft_model(base, config)
    seconds = train(model, task.batches(seed), steps=STEPS, rate=key["rate"])
    counts = trained(model)
    assert counts["adapter"] <= key["budget"], (counts, key)
    return {
        **key,
        "parameters": counts["adapter"],
        "test_loss": task.loss(model),
        "seconds": round(seconds, 1),
        "choosing_seconds": round(choosing, 1),
        "ranks": choice.layout,
        "about": choice.about,
    }


def main() -> None:
    """Run what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    add_grid(
        parser,
        budgets=[500, 1500, 4000, 13440, 54000],
        rates=[3e-2, 1.5e-2],
        out="results/where-it-pays/curve.json",
    )
    arguments = parser.parse_args()
    task = Language(arguments.model, arguments.data)
    candidates = Candidates(task.model())
    records = Records(arguments.out, SETTINGS)
    if records.find({"arm": "base"}) is None:
        records.add({"arm": "base", "parameters": 0, "test_loss": task.loss(task.model())})
    for key, options in asked(arguments):
        if records.find(key) is None:
            record = run_arm(task, candidates, key, options, records)
            records.add(record)
            print({name: record[name] for name in (*key, "parameters", "test_loss", "seconds")}, flush=True)


if __name__ == "__main__":
    main()
