"""What a checkpoint may hold: the checks that stand between another model's adapter and half a load."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

from rankwise.errors import nearest

FACTORS = ("lora_A", "lora_B")


_LAYER_DOWN = re.compile(r"layer_paths\.(?P<block>\d+)\.lora_A\.")


def shared_downs(keys: Iterable[str]) -> list[str]:
    """Return the names of all blocks' ``A`` of ``layer`` paths, the lowest block first."""
    found = {key: _LAYER_DOWN.search(key) for key in keys}
    return sorted((key for key, match in found.items() if match), key=lambda key: int(found[key]["block"]))  # type: ignore[index]


def is_path_tensor(key: str, adapter: str) -> bool:
    """Tell whether a tensor belongs to a path; one that the model has no place for still lacks the adapter's name."""
    *_, host, owner, last = ("", "", *key.split("."))
    if owner == "lora_allocation":
        return last == adapter
    return owner in FACTORS or (host in FACTORS and owner == adapter)


def check_same_names(own: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    """Refuse names that the model lacks, and a path without its record."""
    unknown = sorted(set(given) - set(own))
    missing = sorted(key for key in own if ".lora_allocation." in key and key not in given)
    if unknown:
        raise ValueError(
            f"the adapter holds {len(unknown)} tensors that this model has no place for, the first {unknown[0]!r}"
            f"{nearest(unknown[0], own)}; it was made for another model or with other target_modules or shortcuts"
        )
    if missing:
        raise ValueError(
            f"the adapter lacks {len(missing)} of this model's paths, the first {missing[0]!r}; it was made for "
            "another model or with other target_modules, or the file is not whole"
        )


def check_same_shapes(present: dict[str, Tensor], loaded: dict[str, Tensor]) -> None:
    """Refuse tensors of another shape, heads included."""
    differing = sorted(key for key in set(present) & set(loaded) if present[key].shape != loaded[key].shape)
    if differing:
        key = differing[0]
        raise ValueError(
            f"the adapter's {key!r} is {tuple(loaded[key].shape)} but this model's is {tuple(present[key].shape)} "
            f"({len(differing)} tensors differ); it was made for another model, another r or another number of labels"
        )
