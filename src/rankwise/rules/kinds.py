"""The kinds of path: between which two points of a block one runs. Pure names.

``linear`` paths (LoRA) run along a projection. The others, *block paths*, connect points of the residual stream and are
named ``layers.<block>.<kind>``, or ``layers.<first>-<last>.layer`` across several blocks.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of block path.

    Args:
        name: Its name in configs and path names.
        source: Where it reads.
        destination: Where it adds.
        identity: Whether a plain skip runs beside it, so that its effective matrix is ``I + s B A`` and not ``s B A``.
        reference: Where it was proposed, and under which name.
    """

    name: str
    source: str
    destination: str
    identity: bool
    reference: str


BLOCK_KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("res1", "block input", "attention sum", True, "arXiv 2406.14956, s_res1"),
        Kind("res2", "mid", "feed-forward sum", True, "arXiv 2406.14956, s_res2"),
        Kind("in", "block input", "block output", False, "arXiv 2406.14956, s_in"),
        Kind("cut", "mid of the block before", "mid", False, "arXiv 2406.14956, s_cut"),
        Kind("layer", "input of the span's first block", "output of its last block", False, "arXiv 2503.00572, LoR2C"),
    )
}


def kind_of(name: str) -> str:
    """Return the kind of the path with the given name; no linear path inside a block is named like a kind."""
    last = name.rpartition(".")[2]
    return last if last in BLOCK_KINDS else "linear"


def is_shortcut(name: str) -> bool:
    """Tell whether a path's name is that of a block path (``layers.3.res1``)."""
    return kind_of(name) != "linear"
