"""What each method takes besides time: memory, optimizer state, files; how long saving, loading, generating take.

Run: OMP_NUM_THREADS=1 python benchmarks/footprint.py [--model minilm,stories260k] [--rounds 5] [--device cpu]

The peak is that of a training step, weights, optimizer and activations included: on a GPU what tensors took, else the
resident memory of a process of its own. Saving and loading go by the clock on the wall; an adapter is loaded into a
base that is there. --only takes a regular expression of methods.
"""

from __future__ import annotations

import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from _harness import Step, Table, arguments, interleaved, peak_bytes
from _shapes import build, generation, shape_of, sharing, title_of
from peft import PeftModel, get_peft_model
from steps import Training, configs, trained

from rankwise.method.targets import all_linear

WHOLE = "all weights"
WRITTEN = 32  # tokens
MERGEABLE = ("PEFT LoRA, all linear, r=2", "rankwise, all linear, r=2")
METHODS = (
    "PEFT LoRA, q and v, r=8",
    *MERGEABLE,
    "rankwise, all linear + shortcuts, r=2",
    "LoR2C, r=8",
    "AdaLoRA, q and v, r=8",
    WHOLE,
)


def stepper(name: str, device: str, method: str) -> Training:
    """Return the training step of a method, its weights in memory of their own and not mapped from a file."""
    shape = shape_of(name)
    model = build(shape, device)
    if method != WHOLE:
        model = get_peft_model(model, configs(shape, all_linear(model))[method])
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return trained(model, shape, device, 1e-6 if method == WHOLE else 1e-4)


def save(step: Training, folder: Path) -> None:
    """Write what a method trained: an adapter, or the whole model."""
    options = {"save_embedding_layers": False} if isinstance(step.model, PeftModel) else {}
    step.model.save_pretrained(folder, **options)


class Loading:
    """Loads what was saved; an adapter into a base that ``prepare`` made."""

    def __init__(self, base: Any, folder: Path, adapter: bool) -> None:
        self.base, self.folder, self.adapter = base, folder, adapter
        self.fresh: Any = None

    def prepare(self) -> None:
        """Make a base without adapters."""
        self.fresh = sharing(self.base)

    def __call__(self) -> None:
        if self.adapter:
            PeftModel.from_pretrained(self.fresh, self.folder)
        else:
            type(self.base).from_pretrained(self.folder).to(self.base.device)


def generating(name: str, device: str, methods: list[str]) -> dict[str, Step]:
    """Return what writes text, by name: the base, each method's paths beside it, and what can be merged into it."""
    shape = shape_of(name)
    base = build(shape, device)
    steps = {"the base": generation(sharing(base), device, WRITTEN)}
    for method in methods:
        for merged in (False, True) if method in MERGEABLE else (False,):
            config = configs(shape, all_linear(base))[method]
            config.init_lora_weights = False  # paths of zeros would do as much work, but merging them nothing
            model = get_peft_model(build(shape, device) if merged else sharing(base), config)
            steps[f"{method}, merged" if merged else method] = generation(
                model.merge_and_unload() if merged else model, device, WRITTEN
            )
    return steps


def measure(table: Table, name: str, methods: list[str], given: Any) -> None:
    """Measure one model."""
    shape, device, title = shape_of(name), given.device, title_of(name, given.threads)
    peaks = {each: round(peak_bytes(partial(stepper, name, device, each), device) / 2**20, 1) for each in methods}
    steps = {each: stepper(name, device, each) for each in methods}
    found = interleaved(steps, given.rounds, device)
    state = {each: step.state_bytes() for each, step in steps.items()}
    table.add(f"{title}: a training step", found, methods[0], peak_MiB=peaks, optimizer_bytes=state)
    base = build(shape, device)
    with tempfile.TemporaryDirectory() as folder:
        places = {each: Path(folder) / str(number) for number, each in enumerate(methods)}
        found = interleaved(
            {each: partial(save, steps[each], places[each]) for each in methods}, given.rounds, device, wall=True
        )
        sizes = {each: sum(file.stat().st_size for file in place.iterdir()) for each, place in places.items()}
        table.add(f"{title}: save_pretrained", found, methods[0], bytes=sizes)
        loads = {each: Loading(base, places[each], each != WHOLE) for each in methods}
        prepare = {each: load.prepare for each, load in loads.items()}
        found = interleaved(loads, given.rounds, device, prepare=prepare, wall=True)
        table.add(f"{title}: from_pretrained", found, methods[0])
    if shape.task == "CAUSAL_LM":
        found = interleaved(generating(name, device, [each for each in methods if each != WHOLE]), given.rounds, device)
        table.add(f"{title}: generation of {WRITTEN} tokens, one sequence", found, "the base")


def main() -> None:
    given = arguments(__doc__, model="minilm,stories260k", only="", rounds=5)
    methods = [each for each in METHODS if re.search(given.only, each)]
    table = Table(__file__, vars(given))
    for name in given.model.split(","):
        measure(table, name, methods, given)
        table.write()


if __name__ == "__main__":
    main()
