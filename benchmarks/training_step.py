"""What a search adds to a training step: PEFT's LoRA, and HeteroLoRA without and with an open scoring window.

Run: OMP_NUM_THREADS=1 python benchmarks/training_step.py [--model minilm] [--rounds 11] [--device cpu]

Adapters on query and value. A quarter of the paths at r=32 is on; PEFT's LoRA has all at r=8, the same number of
trainable parameters.
"""

from __future__ import annotations

from typing import Any

from _harness import Step, Table, arguments, interleaved
from _shapes import Shape, build, shape_of, title_of
from peft import LoraConfig, get_peft_model
from steps import trained

import rankwise
from rankwise.paths.path_set import path_set
from rankwise.scores.recorder import StatisticRecorder
from rankwise.scores.statistics import SketchedGradient, Statistic, WeightGradient


def windowed(model: Any, step: Step, statistic: Statistic) -> Step:
    """Return the step with a window open."""

    def run() -> None:
        path_set(model).session.recorder = recorder = StatisticRecorder(statistic)
        step()
        recorder.fold()
        assert recorder.sums

    return run


def variants(shape: Shape, device: str) -> dict[str, Step]:
    """Return the steps by name."""
    common: dict[str, Any] = {"task_type": shape.task, "target_modules": list(shape.few)}
    searched = {"r": 32, "lora_alpha": 64, "mode": "dynamic", "search_every": 10**6, "proxy": "constant", **common}
    windows = {
        "HeteroLoRA, window, exact": WeightGradient(),
        "HeteroLoRA, window, 16-column sketch": SketchedGradient(16, seed=0),
    }
    plain = get_peft_model(build(shape, device), LoraConfig(r=8, lora_alpha=16, **common))
    steps = {"PEFT LoRA r=8": trained(plain, shape, device)}
    for name, statistic in {"HeteroLoRA, no window": None, **windows}.items():
        model = get_peft_model(build(shape, device), rankwise.HeteroLoraConfig(**searched))
        step = trained(model, shape, device)
        step()  # wakes the search, which owns the window from then on
        steps[name] = step if statistic is None else windowed(model, step, statistic)
    return steps


def main() -> None:
    given = arguments(__doc__, model="minilm")
    table = Table(__file__, vars(given))
    found = interleaved(variants(shape_of(given.model), given.device), given.rounds, given.device)
    table.add(f"{title_of(given.model, given.threads)}: a training step", found, "PEFT LoRA r=8")
    table.write()


if __name__ == "__main__":
    main()
