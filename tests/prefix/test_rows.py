"""Rows by key: what lies in memory, what in files, and that all of it comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rankwise.prefix.rows import SHARD_BYTES, Rows


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*")) if folder.is_dir() else []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_row_comes_back_to_the_bit_wherever_it_lies(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of up to 20 tokens: the first in memory, then two files, then what waits for the next one."""
    given = {f"{n:x}": drawn(n, 3, seed=n, dtype=dtype) for n in range(21)}
    total = sum(row.nbytes for row in given.values())
    monkeypatch.setattr("rankwise.prefix.rows.SHARD_BYTES", total // 3)
    rows = Rows(total // 5, tmp_path / "rows")
    for key, row in given.items():
        assert key not in rows
        rows.put(key, row)
        assert key in rows
    assert len(rows) == len(given)
    assert rows.ram == sum(row.nbytes for row in rows.memory.values()) <= total // 5
    assert rows.waiting == sum(row.nbytes for row in rows.pending.values())
    assert files(tmp_path / "rows") == ["rows-00000.safetensors", "rows-00001.safetensors"]
    assert rows.memory
    assert rows.pending
    assert rows.files
    for key, row in given.items():
        assert rows.get(key).dtype == dtype
        assert torch.equal(rows.get(key), row)


def test_a_file_is_written_when_64_mb_wait(tmp_path: Path) -> None:
    assert SHARD_BYTES == 64 * 1024 * 1024
    rows = Rows(0, tmp_path / "rows")
    half = torch.zeros(SHARD_BYTES // 8)
    rows.put("a", half)
    assert files(tmp_path / "rows") == []
    rows.put("b", half)
    assert files(tmp_path / "rows") == ["rows-00000.safetensors"]
    assert rows.waiting == 0
    rows.clear()


def test_a_row_is_kept_as_it_was() -> None:
    """Whatever becomes of the batch that it is a part of."""
    batch = drawn(4, 3, 2).requires_grad_()
    wanted = batch[1].detach().clone()
    rows = Rows(2**20, None)
    rows.put("a", batch[1])
    rows.put("b", batch[1].T)
    with torch.no_grad():
        batch.zero_()
    assert torch.equal(rows.get("a"), wanted)
    assert torch.equal(rows.get("b"), wanted.T)
    assert rows.get("b").is_contiguous()
    assert not rows.get("a").requires_grad


def test_memory_is_filled_to_the_byte_and_smaller_rows_go_on_fitting() -> None:
    rows = Rows(10 * 4, None)
    for key, size in (("a", 6), ("too large", 5), ("b", 4), ("c", 1), ("empty", 0)):
        rows.put(key, torch.ones(size))
    assert [key for key in ("a", "too large", "b", "c", "empty") if key in rows] == ["a", "b", "empty"]
    assert rows.ram == 40
    assert len(rows) == 3


def test_half_of_each_number_takes_half_the_memory() -> None:
    rows, row = Rows(2**20, None, torch.bfloat16), drawn(3, 4)
    rows.put("a", row)
    assert rows.ram == row.nbytes // 2
    assert torch.equal(rows.get("a"), row.bfloat16())


def test_what_is_cleared_is_gone_and_the_table_begins_anew(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "rows-00007.safetensors").write_bytes(b"left by a run that was killed")
    rows = Rows(8, folder)
    assert not folder.exists()
    for _ in range(2):
        for key in ("a", "b", "c"):
            rows.put(key, torch.ones(2))
        rows.flush()
        assert files(folder) == ["rows-00000.safetensors"]
        assert (len(rows), rows.ram) == (3, 8)
        rows.clear()
        assert not folder.exists()
        assert (len(rows), rows.ram, rows.waiting) == (0, 0, 0)
        assert "a" not in rows
