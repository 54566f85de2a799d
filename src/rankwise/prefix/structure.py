"""Where a network's frozen prefix ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from torch import nn

from rankwise.paths.low_rank_path import LowRankPath
from rankwise.paths.path_set import holders
from rankwise.wiring.anatomy import anatomy_of, find_blocks


@dataclass(frozen=True)
class Prefix:
    """The blocks that no path reads, writes or lies in and that nothing trains in, and what runs before them.

    Args:
        model: The base model, whose call begins with the tokens.
        blocks: The blocks of the prefix, the first one first.
        following: The first block that is not in it.
        before: The modules that run before the blocks: embeddings, their norm and dropout.
    """

    model: nn.Module
    blocks: tuple[nn.Module, ...]
    following: nn.Module
    before: tuple[nn.Module, ...]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield all weights of the prefix."""
        for module in (*self.before, *self.blocks):
            yield from module.parameters()


def prefix_of(model: nn.Module) -> Prefix:
    """Return the frozen prefix of a model, with paths of this library or trained otherwise.

    A path that is off counts like one that is on: a search may switch it on.

    Raises:
        ValueError: The family is not described, or something in the lowest block, or below it, trains.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    named = find_blocks(base, anatomy_of(base))
    blocks = list(named.values())
    paths = [
        path for sets in holders(model).values() for each in sets.rankwise_paths.values() for path in each.resident
    ]
    trains = [index for index, block in enumerate(blocks) if any(p.requires_grad for p in block.parameters())]
    lowest = min([*trains, *(_begins(path) for path in paths if path.built_block >= 0), len(blocks) - 1])
    before = tuple(_before(base, next(iter(named)).rpartition(".")[0]))
    trained = [type(module).__name__ for module in before if any(p.requires_grad for p in module.parameters())]
    if lowest == 0 or trained:
        what = f"the {trained[0]} before the blocks trains" if trained else "something in block 0 trains"
        raise ValueError(
            f"a prefix can be kept where nothing trains in the lowest blocks or before them, and here {what}: put the "
            "paths higher (layers_to_transform=[...]), or leave the prefix cache out"
        )
    return Prefix(base, tuple(blocks[:lowest]), blocks[lowest], before)


def _begins(path: LowRankPath) -> int:
    """Return the block in which a path's source is; that of ``cut`` is the mid of the block before."""
    return path.built_block - (path.kind == "cut")


def _before(model: nn.Module, stack: str) -> Iterator[nn.Module]:
    """Yield the modules that were registered before the stack of blocks, and so run before it."""
    for part in stack.split("."):
        for name, child in model.named_children():
            if name == part:
                break
            yield child
        model = model.get_submodule(part)
