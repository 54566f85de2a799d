"""What a step is predicted to take in the choice of a rank plan, against what it takes, in steps of uniform LoRA.

Run: OMP_NUM_THREADS=1 python benchmarks/plan_time.py [--model minilm,narrow-12] [--rounds 7] [--device cpu]

Uniform LoRA is rank 1 on all projections. The other paths are rank 1 on the projections of the upper two thirds, the
upper third and the last block, and LoR2C's path across the last block alone. ``error`` is predicted over measured,
less 1. --model takes several names, with commas between them.
"""

from __future__ import annotations

from typing import Any

from _harness import Step, Table, arguments, interleaved, precision, quartiles
from _shapes import Shape, build, shape_of, title_of
from peft import get_peft_model
from steps import trained

import rankwise
from rankwise.paths.path_set import path_set
from rankwise.planning.candidates import with_candidates
from rankwise.planning.step_time import StepTime, measure_step
from rankwise.rules.kinds import kind_of
from rankwise.scores.probe import loss_in, model_loss

UNIFORM = "uniform LoRA"


def measured_parts(shape: Shape, device: str) -> StepTime:
    """Return the parts of a step that a plan goes by."""
    model, loss = build(shape, device), loss_in(model_loss, lambda: precision(device))
    with with_candidates(model, ["linear", "layer"], None, seed=0) as wrapped:
        return measure_step(wrapped, path_set(wrapped).paths, shape.batch(model, device), loss)


def plans(step: StepTime) -> dict[str, dict[str, int]]:
    """Return ranks by name."""
    linear = [name for name in step.depths if kind_of(name) == "linear"]
    blocks = len(step.backward)
    found = {UNIFORM: dict.fromkeys(linear, 1)}
    for words, lowest in (
        ("upper two thirds", blocks // 3),
        ("upper third", 2 * blocks // 3),
        ("last block", blocks - 1),
    ):
        found[words] = {name: 1 for name in linear if step.depths[name] >= lowest}
    found["layer of the last block"] = {f"layers.{blocks - 1}.layer": 1}
    return found


def stepper(shape: Shape, device: str, ranks: dict[str, int], modules: dict[str, str]) -> Step:
    """Return the training step of a plan."""
    linear = [modules[name] for name in ranks if kind_of(name) == "linear"]
    shortcuts = {name: rank for name, rank in ranks.items() if kind_of(name) != "linear"}
    fields: dict[str, Any] = {"shortcuts": ["layer"], "shortcut_ranks": shortcuts} if shortcuts else {}
    config = rankwise.HeteroLoraConfig(
        mode="off", task_type=shape.task, r=1, lora_alpha=2, target_modules=linear, **fields
    )
    return trained(get_peft_model(build(shape, device), config), shape, device)


def main() -> None:
    given = arguments(__doc__, model="minilm,narrow-12", rounds=7)
    table = Table(__file__, vars(given))
    for model in given.model.split(","):
        shape = shape_of(model)
        step = measured_parts(shape, given.device)
        with with_candidates(build(shape, given.device), ["linear", "layer"], None, seed=0) as wrapped:
            modules = {name: path.module for name, path in path_set(wrapped).paths.items()}
        ranks = plans(step)
        found = interleaved(
            {name: stepper(shape, given.device, each, modules) for name, each in ranks.items()},
            given.rounds,
            given.device,
        )
        predicted = {name: step.step(each) / step.step(ranks[UNIFORM]) for name, each in ranks.items()}
        ratios = {
            name: quartiles([a / b for a, b in zip(values, found[UNIFORM], strict=True)])[1]
            for name, values in found.items()
        }
        errors = {name: round(predicted[name] / ratios[name] - 1, 3) for name in ranks}
        title = f"{title_of(model, given.threads)}: a training step"
        shown = {name: round(share, 3) for name, share in predicted.items()}
        table.add(title, found, UNIFORM, predicted=shown, error=errors)
    table.write()


if __name__ == "__main__":
    main()
