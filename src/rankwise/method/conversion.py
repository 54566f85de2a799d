"""Modules that PEFT takes for experts, so that plain LoRA on them becomes LoRA on others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn

from rankwise.method.ranks import lookalikes

SHOWN = 3


def converted(model: nn.Module, modules: Iterable[str], others: Iterable[str] = ()) -> list[str]:
    """Return those of some modules that PEFT puts no plain LoRA on, but on the experts it takes them for.

    In families whose experts transformers has joined (DeepSeek, Qwen3-MoE, GLM-4-MoE), PEFT goes by the last name: a
    ``gate_proj`` becomes all experts' ``gate_up_proj``, also that of a dense MLP or of shared experts. It does so to
    ``LoraConfig`` only; ``HeteroLoraConfig`` stays as it is.

    Args:
        model: The base model.
        modules: Full names.
        others: Other modules. Where a name ends in another, an expression has to tell them apart, of which PEFT keeps
            the last names in these families: then it is all modules.
    """
    names = list(modules)
    if lookalikes(names, [*names, *others]) and _rewritten(model, ".*"):
        return names
    taken = {last for last in {_last(name) for name in names} if _rewritten(model, [last])}
    return [name for name in names if _last(name) in taken]


def refuse_converted(modules: Sequence[str], instead: str) -> None:
    """Refuse plain LoRA on modules that PEFT takes for experts.

    Args:
        modules: Those; nothing is refused where there are none.
        instead: What to do.

    Raises:
        ValueError: There are some.
    """
    if modules:
        raise ValueError(f"{taken_for_experts(modules)} and would put plain LoRA on those instead: {instead}")


def taken_for_experts(modules: Sequence[str]) -> str:
    """Return the words for it, to which what follows from it is added."""
    more = f" and {len(modules) - SHOWN} more" if len(modules) > SHOWN else ""
    return f"PEFT takes {', '.join(modules[:SHOWN])}{more} for the experts that have the same names"


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _rewritten(model: nn.Module, targets: list[str] | str) -> bool:
    """Tell whether PEFT makes other targets of some, by asking it: its table grows with transformers' families."""
    config = LoraConfig(target_modules=targets)
    before = config.target_modules
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # of projections that are joined it wants all or none
        return True
    return bool(config.target_modules != before)
