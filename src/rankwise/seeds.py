"""Seeds that depend on names, not on the order of calls."""

from __future__ import annotations

import hashlib


def stable_seed(*parts: object) -> int:
    """Return a seed in [0, 2**63) that depends on the parts alone, the same in every process and on every machine."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
