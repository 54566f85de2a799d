"""Edits: what a policy may do to a model, as data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from rankwise.errors import nearest
from rankwise.paths.low_rank_path import LowRankPath
from rankwise.paths.path_set import PathSet, path_set


@dataclass(frozen=True)
class Enable:
    """Switch a path on: it trains and contributes from the next forward pass on.

    Args:
        path: The path's name.
    """

    path: str


@dataclass(frozen=True)
class Disable:
    """Switch a path off, as the config's ``on_disable`` says.

    ``"keep"``: its weights and optimizer moments stay, its contribution vanishes. ``"reset"``: ``B`` becomes 0 and its
    moments are cleared. ``"freeze"``: it stops training but keeps contributing.

    Args:
        path: The path's name.
    """

    path: str


Edit = Enable | Disable


def apply_(
    model: nn.Module, edits: Iterable[Edit], optimizer: Optimizer | None = None, *, adapter: str | None = None
) -> None:
    """Apply edits to a model and, where there is one, its optimizer. All are checked before any is applied.

    Args:
        model: A model with rankwise paths.
        edits: What to do, in order.
        optimizer: The optimizer that owns the paths' parameters; ``on_disable="reset"`` clears moments there.
        adapter: The adapter to edit; the active one if left out.

    Raises:
        ValueError: An edit names a path that the model does not have, or the adapter is merged into the base.
    """
    apply_to_paths_(path_set(model, adapter), list(edits), optimizer)


def apply_to_paths_(paths: PathSet, edits: list[Edit], optimizer: Optimizer | None = None) -> None:
    """Apply edits to a path set; see ``apply_``."""
    for edit in edits:
        if edit.path not in paths.paths:
            raise ValueError(
                f"{edit!r} names no path of adapter {paths.adapter!r}{nearest(edit.path, paths.paths)}; "
                "rankwise.named_paths(model) lists them"
            )
        if paths.adapter in paths.paths[edit.path].host.merged_adapters:
            raise ValueError(
                f"{edit!r}: adapter {paths.adapter!r} is merged into the base; call unmerge_adapter() first"
            )
    for edit in edits:
        path = paths.paths[edit.path]
        if isinstance(edit, Enable):
            path.set_(enabled=True, contributing=True)
        elif path.enabled:
            _disable_(path, paths.config.on_disable, optimizer)


def _disable_(path: LowRankPath, on_disable: str, optimizer: Optimizer | None) -> None:
    path.set_(enabled=False, contributing=on_disable == "freeze")
    for parameter in path.parameters:
        parameter.grad = None
    if on_disable == "reset":
        with torch.no_grad():
            path.lora_B.zero_()
        if optimizer is not None:
            for parameter in path.parameters:
                optimizer.state.pop(parameter, None)


def switches(before: Iterable[str], after: Iterable[str]) -> list[Edit]:
    """Return the edits that lead from one set of enabled paths to another: first off, then on, each in name order."""
    old, new = set(before), set(after)
    return [*map(Disable, sorted(old - new)), *map(Enable, sorted(new - old))]
