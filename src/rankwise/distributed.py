"""The one file that talks to other processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """The number of processes that train together; 1 outside distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if world_size() > 1 else 0


def sum_over_processes_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all processes."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def with_those_of_others(tensors: Mapping[str, Tensor], absent: Callable[[str], float]) -> dict[str, Tensor]:
    """Return tensors by name, with one for each name that only other processes have, sorted by name.

    Args:
        tensors: This process's.
        absent: Called with a name that it lacks: what the tensor is filled with.
    """
    if world_size() == 1:
        return dict(sorted(tensors.items()))
    own = {name: (tuple(tensor.shape), tensor.dtype, tensor.device.type) for name, tensor in tensors.items()}
    told: list[Any] = [None] * world_size()
    dist.all_gather_object(told, own)
    found = dict(tensors)
    for name, (shape, dtype, device) in {name: about for each in told for name, about in each.items()}.items():
        if name not in found:
            found[name] = torch.full(shape, absent(name), dtype=dtype, device=device)
    return dict(sorted(found.items()))


def from_first_process(values: Sequence[float], device: torch.device) -> list[float]:
    """Return what the first process gave, in all of them."""
    if world_size() == 1:
        return list(values)
    told = torch.tensor(values, dtype=torch.float64, device=device)
    dist.broadcast(told, src=0)
    return told.tolist()


def of_every_process(values: Sequence[float], device: torch.device) -> list[list[float]]:
    """Return what each process gave, by its number, in all of them: so that all raise where one has to.

    Args:
        values: This process's numbers, as many as every other's.
        device: Where they are exchanged.
    """
    if world_size() == 1:
        return [list(values)]
    own = torch.tensor(values, dtype=torch.float64, device=device)
    gathered = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(gathered, own)
    return [each.tolist() for each in gathered]


def check_same_everywhere(names: Sequence[str], what: str, device: torch.device) -> None:
    """Raise unless all processes hold the same names.

    Raises:
        RuntimeError: They differ, which would let replicas drift apart.
    """
    if world_size() == 1:
        return
    digest = int.from_bytes(hashlib.sha256("\0".join(names).encode()).digest()[:7], "little")
    seen = torch.tensor([digest, -digest], dtype=torch.int64, device=device)
    dist.all_reduce(seen, op=dist.ReduceOp.MAX)
    if int(seen[0]) != -int(seen[1]):
        raise RuntimeError(f"the processes disagree on {what}; this one has {', '.join(names)}")


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all processes, one process after the other; zeros fill up those that have fewer.

    Args:
        rows: This process's, m x n; n is the same everywhere.
    """
    if world_size() == 1:
        return rows
    most = torch.tensor([len(rows)], dtype=torch.int64, device=rows.device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    padded = rows.new_zeros(int(most), rows.shape[1])
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(gathered, padded)
    return torch.cat(gathered)
