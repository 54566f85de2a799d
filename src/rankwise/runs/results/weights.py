"""What the tensors of a saved adapter say by themselves: which modules it sits on, their ranks, singular values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from rankwise.rules.kinds import BLOCK_KINDS
from rankwise.wiring.names import locate, path_names

FACTOR = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_A(?:\.weight)?$")
LARGEST = 16_384  # a wider factor is no projection of a block, and would take long


@dataclass(frozen=True)
class Weight:
    """One adapted module of a saved adapter.

    Args:
        name: The path's name, as the run's other files have it.
        r: Its rank.
        size: How many numbers its two factors hold.
        sigma: The singular values of ``B A``, largest first; empty where they were not asked for.
    """

    name: str
    r: int
    size: int
    sigma: tuple[float, ...] = ()


def read_weights(folder: str | Path, known: Iterable[str] = (), *, values: bool = False) -> list[Weight]:
    """Return what an adapter folder holds, without the paths across blocks, whose tensors don't name their span.

    Args:
        folder: The adapter folder, or a checkpoint.
        known: Names of paths that are known from other files.
        values: Also compute the singular values, of an ``r x r`` core each.

    Raises:
        ValueError: The file is damaged.
    """
    file = Path(folder) / "adapter_model.safetensors"
    if not file.is_file():
        return []
    try:
        return _read(file, known, values)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}): copy it again") from error


def _read(file: Path, known: Iterable[str], values: bool) -> list[Weight]:
    found = []
    with safe_open(file, framework="pt") as tensors:
        keys = set(tensors.keys())
        factors = {match["module"]: key for key in sorted(keys) if (match := FACTOR.match(key))}
        names = _names(factors, known)
        for module, key in factors.items():
            other = key.replace(".lora_A", ".lora_B")
            if module not in names or other not in keys:
                continue
            (r, width), (height, _) = (tensors.get_slice(each).get_shape() for each in (key, other))
            measured = values and max(width, height) <= LARGEST
            sigma = _sigma(tensors.get_tensor(key), tensors.get_tensor(other)) if measured else ()
            found.append(Weight(names[module], r, r * (width + height), sigma))
    return found


def _names(modules: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Return the path's name for each module that has one."""
    by_block: dict[int, list[str]] = {}
    for name in known:
        place = locate(name)
        if place is not None:
            by_block.setdefault(place.index, []).append(name)
    named, others = {}, []
    for module in modules:
        place, last = locate(module), module.rpartition(".")[2]
        if place is not None and last.removeprefix("path_") in BLOCK_KINDS:
            named[module] = f"layers.{place.index}.{last.removeprefix('path_')}"
        elif "layer_paths" not in module.split("."):
            rows = by_block.get(place.index, []) if place is not None else []
            short = [name for name in rows if name.startswith("layers.")]
            same = [name for name in short if f".{module}".endswith(f".{name.split('.', 2)[2]}")]
            if module in rows:  # a model with two stacks of blocks names its paths in full
                named[module] = module
            elif same:
                named[module] = max(same, key=len)  # attention.output.dense ends as output.dense does
            else:
                others.append(module)
    return named | path_names(others, others)


@torch.no_grad()
def _sigma(a: torch.Tensor, b: torch.Tensor) -> tuple[float, ...]:
    upper_b, upper_a = (torch.linalg.qr(each.float(), mode="r").R for each in (b, a.T))
    return tuple(torch.linalg.svdvals(upper_b @ upper_a.T).tolist())
