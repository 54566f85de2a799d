"""What the benchmark scripts share: interleaved rounds, ratios with their spread, peak memory, a JSON record.

Every round runs each variant once, one after the other, so that whatever else the machine does falls on all alike. A
ratio is the median over the rounds of (variant / reference in the same round), its spread the quartiles of the same.
All run on CUDA unchanged, by themselves where there is a GPU: events for the time, weights in bfloat16.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers

Step = Callable[[], object]
RESULTS = Path(__file__).resolve().parents[1] / "results" / "bench"
WARM = 2
PACKAGES = ("torch", "transformers", "peft", "numpy", "rankwise")


def arguments(doc: str | None, **defaults: Any) -> argparse.Namespace:
    """Read the options that every script has, and those of its own with their defaults; None takes an option away."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, default in {"rounds": 11, "threads": 1, "device": device, "out": "", **defaults}.items():
        if default is not None:
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    quieten()
    return given


def quieten() -> None:
    """Keep what loading a model says out of the tables."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # PEFT 0.21 asks transformers 5.23 this way.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def precision(device: str) -> AbstractContextManager[Any]:
    """Return the context of a forward pass: on a GPU what Trainer's ``bf16`` does, as adapters are kept in float32."""
    return torch.autocast("cuda", torch.bfloat16) if device.startswith("cuda") else nullcontext()


def seconds(step: Step, device: str, *, wall: bool = False) -> float:
    """Return how long a step takes: by CUDA's own events on a GPU, else by the clock.

    With one thread the clock is that of the process, which stands still while others have the processor; ``wall`` is
    for what waits for files.
    """
    gc.disable()  # as timeit does: going through all the models that wait would fall on one variant, always the same
    try:
        return _seconds(step, device, wall)
    finally:
        gc.enable()


def _seconds(step: Step, device: str, wall: bool) -> float:
    if device.startswith("cuda"):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        step()
        ended.record()
        ended.synchronize()
        return began.elapsed_time(ended) / 1000
    clock = time.process_time if torch.get_num_threads() == 1 and not wall else time.perf_counter
    at = clock()
    step()
    return clock() - at


def kept_bytes(step: Step) -> int:
    """Return how much a step's forward pass keeps for its backward pass, parameters included, each tensor once."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(kept.values())


def resident(field: str) -> int:
    """Return bytes by the kernel's count: VmRSS now, VmHWM at the peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak_bytes(make: Callable[[], Step], device: str) -> int:
    """Return the memory at the peak of a step, weights and optimizer included.

    On a GPU that is what tensors took. Else it is the resident memory of a process of its own, less what the process
    had after imports and a first step.

    Args:
        make: Makes the model and its step; a function that can be pickled.
        device: Where it runs.
    """
    if device.startswith("cuda"):
        gc.collect()
        before = torch.cuda.memory_allocated(device)
        step = make()
        step()  # makes the optimizer's state
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    # So that freed memory goes back to the system and the next tensor doesn't lie beside a hole.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["peft", "rankwise", "transformers"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak_of_process, make).result()


def _peak_of_process(make: Callable[[], Step]) -> int:
    torch.set_num_threads(1)
    quieten()
    make()()  # what the first step of a process loads besides
    gc.collect()
    before = resident("VmRSS")
    step = make()
    step()  # makes the optimizer's state
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # starts VmHWM anew
    step()
    return resident("VmHWM") - before


def interleaved(
    steps: Mapping[str, Step],
    rounds: int,
    device: str = "cpu",
    *,
    prepare: Mapping[str, Step] | None = None,
    warm: int = WARM,
    wall: bool = False,
) -> dict[str, list[float]]:
    """Return the seconds of each variant in each round.

    Args:
        steps: What is timed, by name.
        rounds: How often.
        device: Where it runs.
        prepare: What is run before a variant, by its name, and not timed.
        warm: Rounds before those that count.
        wall: Go by the clock on the wall.
    """
    found: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + warm):
        for name, step in steps.items():
            if prepare is not None and name in prepare:
                prepare[name]()
            took = seconds(step, device, wall=wall)
            if number >= warm:
                found[name].append(took)
    return found


def quartiles(values: list[float]) -> list[float]:
    """Return lower quartile, median and upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


@dataclass
class Table:
    """Rows of one script: printed as they come, written as one JSON file.

    Args:
        script: The script's ``__file__``.
        settings: What it ran with.
    """

    script: str
    settings: Mapping[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, title: str, found: Mapping[str, list[float]], reference: str, **more: Mapping[str, Any]) -> None:
        """Print and keep medians, ratios and spreads of one set of rounds.

        Args:
            title: What was timed.
            found: Seconds by variant and round.
            reference: The variant that the others are divided by.
            **more: Further columns by variant.
        """
        print(f"\n{title} (load {os.getloadavg()[0]:.1f})")
        for name, values in found.items():
            low, ratio, high = quartiles([a / b for a, b in zip(values, found[reference], strict=True)])
            extra = {column: by[name] for column, by in more.items() if name in by}
            told = "".join(f"  {column} {value:,}" for column, value in extra.items())
            print(
                f"  {name:44}{1000 * statistics.median(values):9.1f} ms  {ratio:.3f} ({low:.3f} to {high:.3f}){told}",
                flush=True,
            )
            self.rows.append(
                {
                    "what": title,
                    "variant": name,
                    "reference": reference,
                    "seconds": statistics.median(values),
                    "ratio": ratio,
                    "ratio_quartiles": [low, high],
                    "rounds": len(values),
                    **extra,
                }
            )

    def show(self, title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Print and keep what is no time: columns by variant."""
        print(f"\n{title}")
        for name, columns in rows.items():
            told = "".join(f"  {column} {value:,}" for column, value in columns.items())
            print(f"  {name:44}{told}", flush=True)
            self.rows.append({"what": title, "variant": name, **columns})

    def write(self) -> None:
        """Write ``results/bench/<script>.json``, or the file that ``--out`` names."""
        file = Path(self.settings.get("out") or RESULTS / f"{Path(self.script).stem}.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        said = [word for before, word in pairwise(sys.argv) if "--out" not in (before, word)]  # where to is no figure's
        command = shlex.join(["python", f"benchmarks/{Path(self.script).name}", *said])
        settings = {name: value for name, value in self.settings.items() if name != "out"}
        record = {"command": command, "settings": settings, **machine(self.settings), "rows": self.rows}
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def machine(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the figures depend on: the processor, its load, the versions."""
    device = str(settings.get("device", "cpu"))
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return {
        "machine": {"device": name, "cores": os.cpu_count(), "load": os.getloadavg(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
