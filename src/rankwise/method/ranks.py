"""Ranks from a number of parameters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from rankwise.configs.heterolora import HeteroLoraConfig
from rankwise.configs.path import PathConfig
from rankwise.wiring.wiring import Wiring


def resolve_ranks(config: PathConfig, projections: Callable[[], Iterable[Any]], wiring: Wiring | None) -> None:
    """Set a config's ranks so that its candidates together have at most ``rank_budget`` parameters, if it says that.

    A path of rank r from i to o features has ``r (i + o)`` parameters. With ``N`` and ``M`` the sums of ``i + o`` over
    linear paths and shortcuts: ``r = shortcut_r = budget // (N + M)`` for ``rank_shape="same"``, and
    ``shortcut_r = (budget - r N) // M`` for ``"shortcuts"`` (the shapes of Table 3, arXiv 2406.14956).

    Args:
        config: The config.
        projections: Returns the modules that get a linear path.
        wiring: The model's block paths, where there are any.

    Raises:
        ValueError: The budget leaves less than rank 1.
    """
    if not isinstance(config, HeteroLoraConfig) or config.rank_budget is None:
        return
    budget = config.rank_budget
    linear = sum(sum(_features(module)) for module in projections())
    shortcuts = 2 * wiring.width * len(wiring.names(config)) if wiring is not None else 0
    if config.rank_shape == "same":
        rank, least = budget // (linear + shortcuts), linear + shortcuts
    else:
        rank, least = (budget - config.r * linear) // shortcuts, config.r * linear + shortcuts
    if rank < 1:
        raise ValueError(
            f"rank_budget={budget} with rank_shape={config.rank_shape!r} leaves less than rank 1: the candidates need "
            f"at least {least} parameters; raise rank_budget, target fewer modules or name fewer shortcuts"
        )
    if config.rank_shape == "same":
        config.r = rank
    config.shortcut_r = rank if shortcuts else None


def rank_fields(
    ranks: Mapping[str, int], scale: float, *, use_rslora: bool = False, others: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the fields of a LoRA config that gives modules these ranks at one scale; most have the default rank.

    Args:
        ranks: The rank of each module, by its full name.
        scale: ``alpha / r`` of all, or ``alpha / sqrt(r)`` with ``use_rslora``.
        use_rslora: Whether PEFT shall scale by ``alpha / sqrt(r)``.
        others: Modules that get no rank.
    """
    if not ranks:
        return {"target_modules": [], "r": 1, "lora_alpha": _whole(scale)}
    alphas = {rank: _whole(scale * (rank**0.5 if use_rslora else rank)) for rank in ranks.values()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    unusual = {pattern_of(module): rank for module, rank in ranks.items() if rank != usual}
    return {
        "target_modules": targets_of(ranks, others),
        "r": usual,
        "lora_alpha": alphas[usual],
        "rank_pattern": unusual,
        "alpha_pattern": {key: alphas[rank] for key, rank in unusual.items()},
    }


def pattern_of(module: str) -> str:
    """Return the key of ``rank_pattern`` for one module: PEFT matches it as an expression, anywhere behind a dot."""
    return f"^{re.escape(module)}"


def targets_of(modules: Iterable[str], others: Iterable[str]) -> list[str] | str:
    """Return ``target_modules`` that PEFT finds exactly these modules by.

    A full name in a list also finds what ends in it: ``encoder.fc`` finds ``teacher.encoder.fc``. Where there is such
    a module, an expression says which are meant.

    Args:
        modules: The modules' full names.
        others: Other modules of the model.
    """
    wanted = list(modules)
    clear = set(lookalikes(wanted, others)) <= set(wanted)
    return wanted if clear else "|".join(map(re.escape, wanted))


def lookalikes(modules: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return which of some modules PEFT would find by the full names of others, in which theirs end."""
    wanted = set(modules)
    return [
        other
        for other in others
        if any(other[place + 1 :] in wanted for place, sign in enumerate(other) if sign == ".")
    ]


def _whole(value: float) -> Any:
    return int(value) if float(value).is_integer() else value


def _features(module: nn.Module) -> tuple[int, int]:
    base: Any = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    if isinstance(base, nn.Linear):
        return base.in_features, base.out_features
    first, second = base.weight.shape  # transformers' Conv1D is transposed, the sum is the same
    return first, second
