"""Where a module is among a model's blocks, by its name, and what its path is called."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from rankwise.rules.kinds import BLOCK_KINDS

BLOCK = re.compile(r"^(?P<stack>.*?)\.?(?P<index>(?<![^.])\d+)\.(?P<inner>.+)$")


@dataclass(frozen=True)
class Place:
    """Where a module is: in block ``index`` of the stack of blocks at ``stack``, under the name ``inner`` there.

    Args:
        stack: Name of the list that holds the blocks, ``bert.encoder.layer``.
        index: Number of the block in its stack.
        inner: Name of the module inside the block, ``attention.self.query``.
    """

    stack: str
    index: int
    inner: str


def locate(module_name: str) -> Place | None:
    """Return the place of a module, or None outside the blocks: the first number in a name counts blocks."""
    match = BLOCK.match(module_name)
    return Place(match["stack"], int(match["index"]), match["inner"]) if match else None


def path_names(targets: Iterable[str], modules: Iterable[str]) -> dict[str, str]:
    """Name the linear path of each targeted projection.

    Inside the blocks: ``layers.<block>.<shortest suffix that is unique in its block>``, so ``layers.3.query`` and
    ``layers.3.attention.output.dense``. Outside the blocks, in models with several stacks of blocks (an encoder and a
    decoder), and for a block's own child that is named like a kind of block path: the module's full name.

    Args:
        targets: Full names of the targeted projections.
        modules: Full names of all modules of the base model.

    Returns:
        The path's name for each full module name.
    """
    places = {name: locate(name) for name in targets}
    stacks = {place.stack for place in places.values() if place is not None}
    if len(stacks) > 1:
        return {name: name for name in places}
    inner_names: dict[int, set[str]] = {}
    for place in map(locate, modules):
        if place is not None and place.stack in stacks:
            inner_names.setdefault(place.index, set()).add(place.inner)
    return {
        name: f"layers.{place.index}.{_unique_suffix(place.inner, inner_names[place.index])}"
        if place is not None and place.inner not in BLOCK_KINDS
        else name
        for name, place in places.items()
    }


def _unique_suffix(inner: str, siblings: set[str]) -> str:
    """Return the shortest suffix of ``inner`` that no other module of the block ends in and no kind is named."""
    parts = inner.split(".")
    for start in range(len(parts) - 1, 0, -1):
        suffix = ".".join(parts[start:])
        if suffix not in BLOCK_KINDS and not any(
            other != inner and (other == suffix or other.endswith(f".{suffix}")) for other in siblings
        ):
            return suffix
    return inner
