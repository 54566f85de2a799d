"""All paths of one adapter, and what they share while training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.config import HeteroLoraConfig
from rankwise.paths.low_rank_path import LowRankPath


class Recorder(Protocol):
    """Something that sees every path's source and destination while a window is open."""

    def tap(self, path: LowRankPath, x: Tensor, result: Tensor) -> Tensor:
        """Return ``result`` with a tap on it."""
        ...

    def drop(self) -> None:
        """Forget the step under way."""
        ...


class PathSet:
    """The paths of one adapter of one model.

    It hangs on the base model as ``model.rankwise_paths[adapter]``, a plain object that copies and pickles with the
    model; the search that is under way does not: a copy starts its own when it is trained.

    Args:
        adapter: Name of the PEFT adapter.
        config: Its config.
        paths: The paths by name, in the order of the model's modules.

    Attributes:
        recorder: Sees sources and destinations while a scoring window is open, else None.
        probing: Whether all paths contribute, as in a probe.
        tied: Whether paths that are off are tied into the graph (distributed training).
        allocator: The search under way, if any.
        history: One record per search.
        folder: Where the adapter was last saved to or loaded from.
    """

    def __init__(self, adapter: str, config: HeteroLoraConfig, paths: Iterable[LowRankPath]) -> None:
        self.adapter = adapter
        self.config = config
        self.paths: dict[str, LowRankPath] = {path.name: path for path in paths}
        self.history: list[dict[str, Any]] = []
        self._idle()

    def _idle(self) -> None:
        self.recorder: Recorder | None = None
        self.probing = False
        self.tied = False
        self.allocator: Any = None
        self.folder: Path | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the search under way behind."""
        return {name: self.__dict__[name] for name in ("adapter", "config", "paths", "history")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start idle."""
        self.__dict__.update(state)
        self._idle()

    @property
    def enabled(self) -> list[LowRankPath]:
        """The paths that train."""
        return [path for path in self.paths.values() if path.enabled]

    @property
    def trains(self) -> bool:
        """Whether the adapter is active and trainable."""
        return self.adapter in self.host.active_adapters and next(iter(self.paths.values())).lora_A.requires_grad

    @property
    def host(self) -> Any:
        """A module that knows which adapters are active; all agree."""
        return next(iter(self.paths.values())).host

    def costs(self) -> dict[str, int]:
        """The number of parameters of each path."""
        return {name: path.num_parameters for name, path in self.paths.items()}

    def counts(self) -> dict[str, int]:
        """Parameters that are enabled, contributing, resident (all candidates) and frozen."""
        paths = self.paths.values()
        return {
            "enabled": sum(path.num_parameters for path in paths if path.enabled),
            "contributing": sum(path.num_parameters for path in paths if path.contributing),
            "resident": sum(path.num_parameters for path in paths),
            "frozen": sum(path.num_parameters for path in paths if path.contributing and not path.enabled),
        }


class PathSets(dict[str, PathSet]):
    """The path sets of a model by adapter, and the hook that wakes their searches.

    Args:
        hook: The handle of the model's forward pre-hook.

    Attributes:
        wiring: What connects the model's block paths, if there are any.
    """

    def __init__(self, hook: RemovableHandle) -> None:
        super().__init__()
        self.hook = hook
        self.wiring: Any = None


def has_adapter(model: nn.Module) -> bool:
    """Tell whether a model has an adapter of any PEFT method."""
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def path_sets(model: nn.Module) -> dict[str, PathSet]:
    """Return the path sets of a model by adapter, found through any wrapper (PEFT, DDP, ``torch.compile``).

    Raises:
        ValueError: The model has none.
    """
    for module in model.modules():
        if "rankwise_paths" in module.__dict__:
            return module.__dict__["rankwise_paths"]
    raise ValueError(
        f"{type(model).__name__} has no rankwise paths; make some with "
        "peft.get_peft_model(model, rankwise.HeteroLoraConfig(...))"
    )


def path_set(model: nn.Module, adapter: str | None = None) -> PathSet:
    """Return one adapter's path set: the named one, else the active one.

    Raises:
        ValueError: The model has no such adapter of this library.
    """
    sets = path_sets(model)
    if adapter is None:
        active = [name for name, paths in sets.items() if name in paths.host.active_adapters]
        adapter = (active or list(sets))[0]
    if adapter not in sets:
        raise ValueError(f"adapter {adapter!r} has no rankwise paths; those that have: {', '.join(map(repr, sets))}")
    return sets[adapter]


def live_shortcuts(paths: PathSet) -> list[str]:
    """Return the names of the block paths that make a difference: enabled, or frozen with ``B`` not zero."""
    return [name for name, path in paths.paths.items() if path.kind != "linear" and path.live]


def check_mergeable(paths: PathSet) -> None:
    """Refuse to put an adapter into the base's weights where it is more than a change of weights.

    Raises:
        ValueError: Names the block paths that are live, or says that norms run twice.
    """
    crossing = sorted({path.kind for path in paths.paths.values()} & {"in", "cut"})
    if paths.config.shortcut_norm == "reapply" and crossing:
        raise ValueError(
            f"adapter {paths.adapter!r} was built with shortcut_norm='reapply' and {', '.join(crossing)} paths, so the "
            "model's norms run twice even where those are off, which no change of weights can express: keep the "
            "adapter as it is (save_pretrained), or train with shortcut_norm='inside'"
        )
    live = live_shortcuts(paths)
    if live:
        raise ValueError(
            f"adapter {paths.adapter!r} has {len(live)} live block paths, which run beside the network and have no "
            f"weight to be merged into: {', '.join(live)}. Keep the adapter as it is (save_pretrained), or switch "
            "them off first: rankwise.apply_(model, [rankwise.Disable(name), ...])"
        )


def named_paths(model: nn.Module, adapter: str | None = None) -> dict[str, LowRankPath]:
    """Return the paths of a model's adapter by name, enabled or not: linear ones in module order, then shortcuts.

    Args:
        model: A model with rankwise paths, wrapped or not.
        adapter: The adapter; the active one if left out.

    Raises:
        ValueError: The model has no rankwise paths, or the adapter none.
    """
    return dict(path_set(model, adapter).paths)
