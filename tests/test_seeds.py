"""Seeds from names: the same on every machine, and another for other parts."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from rankwise import seeds
from rankwise.seeds import stable_seed


@pytest.mark.parametrize("parts", [(), ("a",), ("layers.0.query", 7), (1.5, None, True), ("é\n\0", "")])
def test_a_seed_is_the_first_eight_bytes_of_a_digest_halved(parts: tuple[object, ...]) -> None:
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode("utf-8")).digest()
    expected = sum(byte << (8 * place) for place, byte in enumerate(digest[:8])) // 2
    assert stable_seed(*parts) == expected
    assert 0 <= stable_seed(*parts) < 2**63


def test_parts_and_their_order_tell_seeds_apart() -> None:
    parts = [("ab",), ("a", "b"), ("b", "a"), ("a", "b", ""), (1, 11), (11, 1), ("ba",)]
    assert len({stable_seed(*each) for each in parts}) == len(parts)
    assert stable_seed("layers.0", 1) == stable_seed("layers.0", "1")  # the text counts, not the type


def test_another_process_with_another_hash_seed_gets_the_same() -> None:
    code = "import runpy, sys; print(runpy.run_path(sys.argv[1])['stable_seed']('layers.3.value', 42))"
    command = [sys.executable, "-c", code, seeds.__file__]  # the file alone: its package imports much
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "1"})
    assert int(done.stdout) == stable_seed("layers.3.value", 42)
