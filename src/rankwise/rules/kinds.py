"""The kinds of path: between which two points of a block one runs. Pure names.

``linear`` paths (LoRA) run along a projection. The others, *block paths*, connect points of the residual stream and are
named ``layers.<block>.<kind>``, or ``layers.<first>-<last>.layer`` across several blocks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# The points of a block, in the order in which a forward pass comes to them.
BLOCK_INPUT = "block input"
ATTENTION_SUM = "attention sum"
MID = "mid"
FEED_FORWARD_SUM = "feed-forward sum"
BLOCK_OUTPUT = "block output"
MID_BEFORE = "mid of the block before"


@dataclass(frozen=True)
class Kind:
    """One kind of block path.

    Args:
        name: Its name in configs and path names.
        source: The point where it reads.
        destination: The point where it adds; for ``layer``, of the last block that it spans.
        identity: Whether a plain skip runs beside it, so that its effective matrix is ``I + s B A`` and not ``s B A``.
        reference: Where it was proposed, and under which name.
        crosses: Whether the paper adds it after the norm that follows its destination, and runs the norm again
            (``shortcut_norm="reapply"``).
    """

    name: str
    source: str
    destination: str
    identity: bool
    reference: str
    crosses: bool = False


BLOCK_KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("res1", BLOCK_INPUT, ATTENTION_SUM, True, "arXiv 2406.14956, s_res1"),
        Kind("res2", MID, FEED_FORWARD_SUM, True, "arXiv 2406.14956, s_res2"),
        Kind("in", BLOCK_INPUT, FEED_FORWARD_SUM, False, "arXiv 2406.14956, s_in", crosses=True),
        Kind("cut", MID_BEFORE, ATTENTION_SUM, False, "arXiv 2406.14956, s_cut", crosses=True),
        Kind("layer", BLOCK_INPUT, BLOCK_OUTPUT, False, "arXiv 2503.00572, LoR2C"),
    )
}


BLOCK_PATH = re.compile(rf"layers\.\d+(-\d+)?\.(?P<kind>{'|'.join(BLOCK_KINDS)})")


def kind_of(name: str) -> str:
    """Return the kind of the path with the given name; a projection's name may end in a kind's, but is longer."""
    match = BLOCK_PATH.fullmatch(name)
    return match["kind"] if match else "linear"


def is_shortcut(name: str) -> bool:
    """Tell whether a path's name is that of a block path (``layers.3.res1``)."""
    return kind_of(name) != "linear"
