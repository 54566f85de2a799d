"""The candidate paths of a plain base model, put on it for a while at rank 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft import PeftModel, get_peft_model
from torch import nn

from rankwise.configs.heterolora import HeteroLoraConfig
from rankwise.errors import check_choice
from rankwise.method.conversion import converted
from rankwise.method.heads import inside_heads
from rankwise.method.targets import all_linear
from rankwise.paths.path_set import has_adapter
from rankwise.rules.kinds import BLOCK_KINDS
from rankwise.wiring.anatomy import anatomy_of, find_blocks

REQUIRING = ("_require_grads_hook", "_require_grads_hooks")  # where transformers keeps their handles
SPACES = ("linear", "all")
EVERY = (None, "all-linear")  # as target_modules: all projections


def kinds_of(model: nn.Module, space: str | Sequence[str]) -> list[str]:
    """Return the kinds of path that a space names, ``"linear"`` among them.

    Args:
        model: The base model.
        space: ``"linear"``; ``"all"`` for linear paths and every kind of block path the family can have; or a list of
            kinds.

    Raises:
        ValueError: A word is unknown, the list is empty, or ``"all"`` is asked of a family that is not described.
    """
    if isinstance(space, str):
        check_choice("space", space, SPACES)
        return ["linear"] if space == "linear" else ["linear", *_every_kind(model)]
    for kind in space:
        check_choice("space", kind, ("linear", *BLOCK_KINDS))
    if not space:
        raise ValueError("space=[] leaves nothing to plan: use 'linear', 'all', or a list such as ['linear', 'res2']")
    return list(space)


def _every_kind(model: nn.Module) -> list[str]:
    anatomy = anatomy_of(model)
    kinds = [kind for kind in BLOCK_KINDS if kind != "in" or anatomy.norm == "post"]  # elsewhere in and layer are one
    return [kind for kind in kinds if kind != "cut" or len(find_blocks(model, anatomy)) > 1]


def left_out(model: nn.Module, space: str | Sequence[str], target_modules: Any) -> list[str]:
    """Return the projections that are no candidates of a plan for plain LoRA: PEFT would take them for experts.

    Where the user names the candidates, or block paths are among them, none is left out.
    """
    plain = target_modules in EVERY and kinds_of(model, space) == ["linear"]
    return converted(model, all_linear(model)) if plain else []


@contextmanager
def with_candidates(
    model: nn.Module, space: str | Sequence[str], target_modules: Any, *, seed: int
) -> Iterator[PeftModel]:
    """Put every candidate on a base model inside, at rank 1 with ``B = 0``; take all off again, whatever happens.

    Args:
        model: A base model, without adapters.
        space: Which kinds; see ``kinds_of``.
        target_modules: The linear candidates, as in ``LoraConfig``; all projections but the head where None or
            ``"all-linear"``. What lies inside of a head that PEFT trains as a whole is none, nor what ``left_out``
            says.
        seed: Seeds the initial values.

    Raises:
        ValueError: The model has an adapter, or the space matches nothing.
    """
    if has_adapter(model):
        raise ValueError(
            "a rank plan is made for a base model, and this one has an adapter: give the model without it, or score "
            "the adapter's own paths with rankwise.score_paths(model, batches, proxy='newton')"
        )
    kinds = kinds_of(model, space)
    every = target_modules in EVERY
    without = left_out(model, space, target_modules)
    targets = [name for name in all_linear(model) if name not in without] if every else target_modules
    if "linear" in kinds and not targets:
        lacking = (
            f"{type(model).__name__} has no linear layer outside its head" if every else "target_modules=[] names none"
        )
        raise ValueError(
            f"space={space!r} has linear paths, and {lacking}: name some with target_modules=[...], or plan for block "
            "paths alone with space=['layer']"
        )
    config = HeteroLoraConfig(  # without the task type, for which PEFT would replace the head by a copy
        r=1,
        lora_alpha=1,
        target_modules=targets if "linear" in kinds else [],
        shortcuts=[kind for kind in kinds if kind != "linear"],
        shortcut_alpha=1.0,
        exclude_modules=inside_heads(model) or None,
        mode="off",
        seed=seed,
    )
    with on_base(model, config) as wrapped:
        yield wrapped


@contextmanager
def on_base(model: nn.Module, config: HeteroLoraConfig) -> Iterator[PeftModel]:
    """Put an adapter on a base model inside; take it off again, and leave the model as it was."""
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    # Where it is checkpointed PEFT lets the embedding's output require a gradient, by a hook that unloading leaves.
    hooks = [(module, set(module._forward_hooks)) for module in model.modules() if isinstance(module, nn.Embedding)]
    kept = {name: model.__dict__[name] for name in REQUIRING if name in model.__dict__}
    wrapped = get_peft_model(model, config)
    try:
        yield wrapped
    finally:
        wrapped.unload()
        for module, before in hooks:
            for key in module._forward_hooks.keys() - before:
                del module._forward_hooks[key]
        for name in REQUIRING:
            model.__dict__.pop(name, None)
        model.__dict__.update(kept)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = trainable[name]
