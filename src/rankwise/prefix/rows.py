"""Rows of activations by key: in memory up to a limit, beyond it in memory-mapped safetensors files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rankwise.files import delete, write_atomic

SHARD_BYTES = 64 * 2**20


class Rows:
    """A table of tensors that only grows.

    Args:
        ram_bytes: What may lie in memory.
        folder: Where the rest goes, deleted at the start and by ``clear``; without one, no row is taken once the memory
            is full.
        dtype: The precision that rows are kept in; that which they have if left out.
    """

    def __init__(self, ram_bytes: int, folder: Path | None, dtype: torch.dtype | None = None) -> None:
        self.ram_bytes = ram_bytes
        self.folder = folder
        self.dtype = dtype
        self.clear()

    def clear(self) -> None:
        """Forget all rows."""
        self.memory: dict[str, Tensor] = {}
        self.pending: dict[str, Tensor] = {}  # the next file's
        self.files: dict[str, Any] = {}  # the open file that a row is in
        self.ram = self.waiting = self.written = 0
        if self.folder is not None:
            delete(self.folder)

    def __contains__(self, key: str) -> bool:
        return key in self.memory or key in self.pending or key in self.files

    def __len__(self) -> int:
        return len(self.memory) + len(self.pending) + len(self.files)

    def put(self, key: str, row: Tensor) -> None:
        """Take a row, where there is room for it."""
        kept = row.detach().to("cpu", self.dtype or row.dtype, copy=True).contiguous()
        if self.ram + kept.nbytes <= self.ram_bytes:
            self.memory[key] = kept
            self.ram += kept.nbytes
        elif self.folder is not None:
            self.pending[key] = kept
            self.waiting += kept.nbytes
            if self.waiting >= SHARD_BYTES:
                self.flush()

    def get(self, key: str) -> Tensor:
        """Return a row."""
        for held in (self.memory, self.pending):
            if key in held:
                return held[key]
        row: Tensor = self.files[key].get_tensor(key)
        return row

    def flush(self) -> None:
        """Write the rows that wait for their file."""
        assert self.folder is not None
        path, rows = self.folder / f"rows-{self.written:05}.safetensors", self.pending
        write_atomic(path, lambda temporary: save_file(rows, temporary))
        opened = safe_open(path, framework="pt")
        self.files |= dict.fromkeys(rows, opened)
        self.pending, self.waiting, self.written = {}, 0, self.written + 1
