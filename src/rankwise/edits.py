"""Applying edits: the one place where what is on changes, all of it or nothing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from rankwise.errors import nearest
from rankwise.paths.low_rank_path import LowRankPath, write_
from rankwise.paths.path_set import PathSet, path_set
from rankwise.rules.edits import Edit, Enable, Inject, Merge


def apply_(
    model: nn.Module, edits: Iterable[Edit], optimizer: Optimizer | None = None, *, adapter: str | None = None
) -> None:
    """Apply edits to a model and, where there is one, its optimizer: all of them, or none where one is wrong.

    Call it between optimizer steps, not between a forward pass and its backward pass.

    Args:
        model: A model with rankwise paths.
        edits: What to do, in order; an edit may name what one before it made.
        optimizer: The optimizer that owns the paths' parameters; moments of paths that are reset or off for good are
            cleared there.
        adapter: The adapter to edit; the active one if left out.

    Raises:
        ValueError: The edits are no list, one names a path that the model does not have or does not fit it, the
            adapter is merged into the base, or the optimizer does not own the parameters of a path that is on.
    """
    if isinstance(edits, Edit):
        raise ValueError(f"edits={edits!r} is one edit, and a list of them is needed: [{edits!r}]")
    apply_to_paths_(path_set(model, adapter), list(edits), optimizer)


def apply_to_paths_(paths: PathSet, edits: list[Edit], optimizer: Optimizer | None = None) -> None:
    """Apply edits to a path set; see ``apply_``."""
    before = [(path, path.status) for path in paths.resident]
    own = paths.paths
    names, switched = set(own), []
    try:
        for edit in edits:  # one after the other, and an error takes all of them back
            switched += _switch(paths, own, edit)
            if isinstance(edit, Merge | Inject):
                own = paths.paths  # a later edit may name what this one made
        on = paths.enabled
        if optimizer is not None:
            _check_owned(on, optimizer)
    except BaseException:  # an interrupt, too: no record knows of half a change
        for path, status in before:
            path.stage_(**status._asdict())
        raise
    write_(path for path, status in before if path.status != status)
    # An open window goes on, but what it saw of a path that is no more would be scored under the new one's name.
    if paths.session.recorder is not None:
        paths.session.recorder.keep(names & set(paths.paths))
    # Moments of what went off would push it again when it comes back.
    _clear_(paths, [path for path in switched if not path.enabled], on, optimizer)


def _switch(paths: PathSet, own: dict[str, LowRankPath], edit: Edit) -> list[LowRankPath]:
    """Change what is on as an edit says, and return the paths that went off."""
    if not isinstance(edit, Edit):
        raise ValueError(
            f"{edit!r} is a {type(edit).__name__} and no edit: give rankwise.Enable, Disable, Merge or Inject"
        )
    if isinstance(edit, Merge):
        return _merge(paths, own, edit)
    path = _find(paths, own, edit, edit.path)
    if isinstance(edit, Inject):
        return _inject(paths, edit, path)
    if isinstance(edit, Enable):
        path.stage_(enabled=True, contributing=True)
        return []
    if not path.enabled:
        return []
    path.stage_(enabled=False, contributing=paths.config.on_disable == "freeze")
    return [path]


def _find(paths: PathSet, own: dict[str, LowRankPath], edit: Edit, name: str) -> LowRankPath:
    if name not in own:
        raise ValueError(
            f"{edit!r} names no path of adapter {paths.adapter!r}{nearest(name, own)}; "
            "rankwise.named_paths(model) lists them"
        )
    if paths.adapter in own[name].host.merged_adapters:
        raise ValueError(f"{edit!r}: adapter {paths.adapter!r} is merged into the base; call unmerge_adapter() first")
    return own[name]


def _merge(paths: PathSet, own: dict[str, LowRankPath], edit: Merge) -> list[LowRankPath]:
    first, second = (_find(paths, own, edit, name) for name in (edit.first, edit.second))
    for path in (first, second):
        if path.kind != "layer":
            raise ValueError(f"{edit!r}: {path.name} is a {path.kind!r} path, and only 'layer' paths span blocks")
    if first.blocks[1] + 1 != second.blocks[0]:
        raise ValueError(
            f"{edit!r}: {first.name} ends at block {first.blocks[1]} and {second.name} starts at block "
            f"{second.blocks[0]}; only neighbours merge, the one in front first, and never across a block whose path "
            "was replaced"
        )
    if edit.survivor not in (None, edit.first, edit.second):
        raise ValueError(f"{edit!r}: survivor must be {edit.first!r}, {edit.second!r} or None for the first")
    survivor, loser = (second, first) if edit.survivor == edit.second else (first, second)
    survivor.stage_(
        first=first.blocks[0],
        last=second.blocks[1],
        enabled=survivor.enabled or loser.enabled,
        contributing=survivor.contributing or loser.contributing,
    )
    _retire(loser)
    return [loser]


def _inject(paths: PathSet, edit: Inject, path: LowRankPath) -> list[LowRankPath]:
    first, last = path.blocks
    if path.kind != "layer" or first != last:
        raise ValueError(f"{edit!r}: only a 'layer' path of one block can be replaced by LoRA on that block")
    waiting = [p for p in paths.resident if p.kind == "linear" and p.blocks == path.blocks and not p.available]
    if not waiting and not paths.config.deletes:
        raise ValueError(
            f"{edit!r}: no LoRA waits in block {first}; it has to be there from the start, so that the optimizer knows "
            "it: rankwise.Lor2cConfig(injections=...)"
        )
    for linear in waiting:
        linear.stage_(enabled=True, contributing=True, available=True)
    _retire(path)
    return [path]


def _retire(path: LowRankPath) -> None:
    """Switch a path off for good; it is tied into the graph of its own block from now on."""
    block = path.built_block
    path.stage_(enabled=False, contributing=False, available=False, first=block, last=block)


def _check_owned(on: list[LowRankPath], optimizer: Optimizer) -> None:
    """Refuse to go on where a path that is on would not be trained."""
    owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    lost = [path.name for path in on if not all(id(p) in owned for p in path.parameters if p.requires_grad)]
    if lost:
        raise ValueError(
            f"{', '.join(lost[:5])} would be on, but the optimizer does not own {'its' if len(lost) == 1 else 'their'} "
            "parameters: build it from all parameters that require a gradient, after the model"
        )


@torch.no_grad()
def _clear_(paths: PathSet, off: list[LowRankPath], on: list[LowRankPath], optimizer: Optimizer | None) -> None:
    """Forget the gradients of paths that went off, and the moments of those that were reset or are gone for good."""
    # Going through the few paths that are on: all that are off would take as long as the switches themselves.
    used = {id(parameter) for path in on for parameter in path.parameters}
    for path in off:
        gone = not path.available or paths.config.on_disable == "reset"
        if path.available and gone:
            path.lora_B.zero_()
        for parameter in path.parameters:
            if id(parameter) not in used:
                parameter.grad = None
                if gone and optimizer is not None:
                    optimizer.state.pop(parameter, None)
