"""All paths of one adapter, and what they share while training."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.utils.hooks import RemovableHandle

from rankwise.configs.path import PathConfig
from rankwise.paths.low_rank_path import LowRankPath
from rankwise.paths.session import Session
from rankwise.paths.state import Status
from rankwise.rules.records import Record

FACTORS = ("lora_A", "lora_B")
PEFT_PREFIX = re.compile(r"^((module|_orig_mod)\.)*base_model\.model\.")


class PathSet:
    """The paths of one adapter of one model.

    It hangs on the base model as ``model.rankwise_paths[adapter]``, a plain object that copies and pickles with the
    model; what is under way does not: a copy starts its own search when it is trained.

    Args:
        adapter: Name of the PEFT adapter.
        config: Its config.
        resident: All its paths, also those that an edit may bring in or has taken out for good.
        lookalikes: Modules without a path whose names end in the name of one that has: a config that names modules has
            to tell them apart.
        configs: The model's configs by adapter, in which this one's has to be found.

    Attributes:
        norm: Where ``in`` and ``cut`` paths are added, ``"inside"`` or ``"reapply"``.
        history: One record per search or edit.
        session: What is under way.
    """

    lookalikes: tuple[str, ...] = ()  # of one that an earlier version has pickled, as the next
    configs: MutableMapping[str, Any] | None = None

    def __init__(
        self,
        adapter: str,
        config: PathConfig,
        resident: Iterable[LowRankPath],
        lookalikes: Sequence[str] = (),
        configs: MutableMapping[str, Any] | None = None,
    ) -> None:
        self.adapter = adapter
        self.config: Any = config
        self.configs = configs
        self.norm = config.block_paths().norm
        self.resident = list(resident)
        self.lookalikes = tuple(lookalikes)
        self.history: list[Record] = []
        self.session = Session()

    def __getstate__(self) -> dict[str, Any]:
        """Leave what is under way behind."""
        return {name: value for name, value in self.__dict__.items() if name != "session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start idle."""
        self.__dict__.update(state)
        self.session = Session()

    def become(self, config: PathConfig) -> None:
        """Take another config, here and where the model looks its adapters' configs up."""
        self.config = config
        if self.configs is not None:
            self.configs[self.adapter] = config

    @property
    def paths(self) -> dict[str, LowRankPath]:
        """The paths that may be switched on, by name, in the order they were built."""
        return {path.name: path for path in self.resident if path.available}

    @property
    def enabled(self) -> list[LowRankPath]:
        """The paths that train."""
        return [path for path in self.resident if path.enabled]

    def idle_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that no enabled path has, each once."""
        used = {id(parameter) for path in self.enabled for parameter in path.parameters}
        idle = {id(p): p for path in self.resident for p in path.parameters if id(p) not in used}
        return list(idle.values())

    def refresh(self) -> None:
        """Read again what is on if somebody else has written to the tensors that say it: to all, so the first tells."""
        if self.resident[0].state.stale(self.adapter):
            for path in self.resident:
                path.state.read(self.adapter)

    @property
    def moves(self) -> bool:
        """Whether something has to be done around optimizer steps: a search, edits, or keeping idle paths still."""
        return self.config.acts or any(not path.enabled for path in self.resident)

    @property
    def present(self) -> bool:
        """Whether the adapter is still there: transformers deletes one without asking its tuner."""
        return self.adapter in self.host.lora_B

    @property
    def trains(self) -> bool:
        """Whether the adapter is active and trainable."""
        return self.adapter in self.host.active_adapters and self.first_trainable is not None

    @property
    def first_trainable(self) -> nn.Parameter | None:
        """The first parameter that requires a gradient; whoever freezes some by hand trains by the others."""
        own = (p for path in self.resident for p in reversed(path.parameters) if p.requires_grad)
        return next(own, None)

    @property
    def host(self) -> Any:
        """A module that knows which adapters are active; all agree."""
        return self.resident[0].host

    def owners(self, keys: Iterable[str]) -> dict[str, LowRankPath]:
        """Return whose factor each tensor of a state dict is; others are left out.

        Args:
            keys: Their names there, with the adapter's, behind what PEFT and wrappers put in front. Where the names of
                several modules end one that another wrapper has made, the longest is meant.
        """
        by_module = {path.module: path for path in self.resident}
        found = {}
        for key in keys:
            name = next((head for factor in FACTORS if (head := key.rpartition(f".{factor}.{self.adapter}.")[0])), "")
            name = PEFT_PREFIX.sub("", name)
            while name and name not in by_module:
                name = name.partition(".")[2]
            if name:
                found[key] = by_module[name]
        return found

    def costs(self) -> dict[str, int]:
        """The number of parameters of each path."""
        return {name: path.num_parameters for name, path in self.paths.items()}

    def built_costs(self) -> dict[str, int]:
        """The number of parameters of each path as built, whatever was edited since."""
        return {path.own_name: path.num_parameters for path in self.resident}

    def counts(self) -> dict[str, int]:
        """Parameters that are enabled, contributing, resident (all paths) and frozen; a shared ``A`` counts once."""
        every = [(path.status, path.parameters) for path in self.resident]

        def size(counts: Callable[[Status], bool]) -> int:
            return sum({id(p): p.numel() for status, own in every if counts(status) for p in own}.values())

        return {
            "enabled": size(lambda status: status.enabled),
            "contributing": size(lambda status: status.contributing),
            "resident": size(lambda status: True),
            "frozen": size(lambda status: status.contributing and not status.enabled),
        }


WRAPPERS = re.compile(r"^(module|_orig_mod)\.|(^|\.)_orig_mod(?=\.|$)|(^|\.)base_model\.model$")


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


def _modules_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield what ``model.named_modules()`` yields, whose generator for each level takes ten times as long."""
    seen: set[int] = set()
    left = [("", model)]
    while left:
        name, module = left.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        children = [
            (f"{name}.{key}" if name else key, child) for key, child in module._modules.items() if child is not None
        ]
        left.extend(reversed(children))


def holders(model: nn.Module) -> dict[str, Any]:
    """Return the adapted base models in a model, through any wrapper (PEFT, DDP, ``torch.compile``), by name.

    The name is that of the part that was adapted, so ``""`` for a model that is adapted as a whole.
    """
    found = {}
    for name, module in _modules_of(model):
        if "rankwise_paths" in module.__dict__:
            sets: PathSets = module.__dict__["rankwise_paths"]
            for gone in [adapter for adapter, paths in sets.items() if not paths.present]:
                del sets[gone]
            for paths in sets.values():
                paths.refresh()
            found[WRAPPERS.sub("", name)] = module
    return found


def path_sets(model: nn.Module) -> dict[str, PathSet]:
    """Return the path sets of a model by adapter, found through any wrapper (PEFT, DDP, ``torch.compile``).

    Raises:
        ValueError: The model has none, or several parts of it have some.
    """
    found = holders(model)
    if len(found) > 1:
        raise ValueError(
            f"{len(found)} parts of this {type(model).__name__} have rankwise paths ({', '.join(map(repr, found))}): "
            "give the one that is meant"
        )
    for holder in found.values():
        sets: PathSets = holder.rankwise_paths
        if sets:
            return sets
    raise ValueError(
        f"{type(model).__name__} has no rankwise paths; make some with "
        "peft.get_peft_model(model, rankwise.HeteroLoraConfig(...)) or rankwise.Lor2cConfig(...)"
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
    return [path.name for path in paths.resident if path.kind != "linear" and path.live]


def crossings(paths: PathSet) -> list[str]:
    """Return the names of the paths after which ``shortcut_norm="reapply"`` runs a norm again, on or off."""
    return [path.name for path in paths.resident if path.crosses]


def check_mergeable(paths: PathSet) -> None:
    """Refuse to put an adapter into the base's weights where it is more than a change of weights.

    Raises:
        ValueError: Names the block paths that are live, or says that norms run twice.
    """
    crossing = sorted({path.kind for path in paths.resident if path.crosses})
    if paths.norm == "reapply" and crossing:
        raise ValueError(
            f"adapter {paths.adapter!r} was built with shortcut_norm='reapply' and {', '.join(crossing)} paths, so the "
            "model's norms run twice even where those are off, which no change of weights can express: keep the "
            "adapter as it is (save_pretrained), or train with shortcut_norm='inside'"
        )
    live = live_shortcuts(paths)
    if live:
        freezes = paths.config.on_disable == "freeze" or any(p.contributing and not p.enabled for p in paths.resident)
        off = ", or switch them off first: rankwise.apply_(model, [rankwise.Disable(name), ...])"
        raise ValueError(
            f"adapter {paths.adapter!r} has {len(live)} live block paths, which run beside the network and have no "
            f"weight to be merged into: {', '.join(live)}. Keep the adapter as it is (save_pretrained)"
            f"{'; what is frozen where it would be switched off stays in the sum' if freezes else off}"
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


def beside_paths(model: nn.Module, paths: PathSet) -> list[nn.Parameter]:
    """Return the parameters of a model that no path has, of this adapter or of another: the base's, heads, others'."""
    others = [sets for holder in holders(model).values() for sets in holder.rankwise_paths.values()]
    own = {id(p) for each in [paths, *others] for path in each.resident for p in path.parameters}
    found = {id(p): p for _, module in _modules_of(model) for p in module._parameters.values() if p is not None}
    return [parameter for key, parameter in found.items() if key not in own]


def head_parameters(model: nn.Module, paths: PathSet) -> int:
    """Return how many parameters train beside an adapter's paths and those of others: heads, ``modules_to_save``."""
    return trainable_of(beside_paths(model, paths))


def trainable_of(parameters: Iterable[nn.Parameter]) -> int:
    """Return how many of some parameters' numbers train."""
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
