"""What a checkpoint may hold: the checks that stand between another model's adapter and half a load."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from rankwise.errors import nearest
from rankwise.method.initial import initial_value
from rankwise.method.structure import check_structure
from rankwise.paths.path_set import FACTORS, PathSet

_OTHER_HEADS = ContextVar("rankwise_other_heads", default=False)


@contextmanager
def other_heads(allowed: bool) -> Iterator[None]:
    """Let heads have another size inside: with ``ignore_mismatched_sizes`` PEFT leaves those out and warns."""
    token = _OTHER_HEADS.set(allowed)
    try:
        yield
    finally:
        _OTHER_HEADS.reset(token)


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
    """Refuse tensors of another shape, heads included, and numbers of another sort: integers for weights."""
    both = sorted(set(present) & set(loaded))
    sort = [key for key in both if present[key].is_floating_point() != loaded[key].is_floating_point()]
    if sort:
        raise ValueError(
            f"the adapter's {sort[0]!r} is {loaded[sort[0]].dtype} but this model's is {present[sort[0]].dtype} "
            f"({len(sort)} tensors differ); the file is damaged: copy it again"
        )
    differing = sorted(key for key in set(present) & set(loaded) if present[key].shape != loaded[key].shape)
    if differing:
        key = differing[0]
        raise ValueError(
            f"the adapter's {key!r} is {tuple(loaded[key].shape)} but this model's is {tuple(present[key].shape)} "
            f"({len(differing)} tensors differ); it was made for another model, another r or another number of labels"
            + (" (ignore_mismatched_sizes=True starts such a head anew)" if ".modules_to_save." in key else "")
        )


def completed(loaded: dict[str, Tensor], model: nn.Module, paths: PathSet) -> dict[str, Tensor]:
    """Return a file's tensors where the model's are, with those it may lack: of paths that are off, and a shared ``A``.

    A file written with ``enabled_only`` lacks the weights of paths that don't contribute; they keep their initial
    values, which the seed determines.

    Args:
        loaded: The file's tensors under the model's names.
        model: The model they are for.
        paths: The paths they are for.

    Raises:
        ValueError: The file was made for another model or is not whole.
    """
    adapter, config = paths.adapter, paths.config
    present = model.state_dict()
    own = {key: value for key, value in present.items() if is_path_tensor(key, adapter)}
    given = {key: value for key, value in loaded.items() if is_path_tensor(key, adapter)}
    check_same_names(own, given)
    check_same_shapes(present, given if _OTHER_HEADS.get() else loaded)
    check_structure(model, paths, given)
    # PEFT would report these as missing; they are known, so they are filled in.
    off = {key for key in own if key not in given and not key.endswith(f"lora_allocation.{adapter}")}
    filled = {key: initial_value(key, paths) if own[key].is_meta else own[key] for key in off}
    downs = shared_downs(given) if config.block_paths().share else []
    if downs:
        down = given[downs[0]]
        if not all(torch.allclose(given[other], down, rtol=0, atol=0, equal_nan=True) for other in downs):
            raise ValueError(
                f"the adapter holds {len(downs)} lora_A that differ, the first {downs[0]!r}, and with share=True all "
                "blocks have one: the file is damaged: copy it again"
            )
        filled |= dict.fromkeys(set(shared_downs(own)) - set(downs), down)
    # PEFT reads a file onto the GPU where there is one, and with low_cpu_mem_usage only paths come back from there.
    homes = {key: there.device for key, there in present.items() if not there.is_meta}
    return {key: tensor.to(homes.get(key, tensor.device)) for key, tensor in {**loaded, **filled}.items()}
