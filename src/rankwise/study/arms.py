"""The arms of a race: what a recipe could train instead, each at about the same number of parameters."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from rankwise.method.conversion import converted
from rankwise.method.heads import saved_whole
from rankwise.method.oversized import largest_rank
from rankwise.method.targets import all_linear
from rankwise.runs.building.models import is_head, load_config, model_class
from rankwise.runs.progress import quiet
from rankwise.runs.ranks import plan_ranks
from rankwise.runs.recipes.methods import Method
from rankwise.runs.recipes.recipe import Recipe
from rankwise.runs.sizes import head_size, kind_of, plan_recipe
from rankwise.tasks import TaskData
from rankwise.wiring.anatomy import anatomy_of, find_blocks

DEFAULT, YOURS, PLANNED = "all-linear", "yours", "rank plan"
NAMES = (DEFAULT, "q,v", "MLP", "LoR2C", "all-linear + residual", PLANNED, YOURS)
SCALE = 2.0  # alpha / r where the recipe's method has none
RANK = 8  # of all-linear, where the recipe's method sets no price
LAYER_KINDS = ["res1", "res2", "layer"]
Options = dict[str, Any]


class Arms(NamedTuple):
    """What races.

    Args:
        methods: The method of each arm, as a recipe says it.
        budget: The parameters that each may have.
        left_out: Arms that this model can't have, and why.
        above: Parameters of the arms that are above the budget: too dear at rank 1, or the recipe with a smaller one.
        twin: The arm that is what the recipe has already, if one is: as the recipe's own arm it would run twice.
    """

    methods: dict[str, Options]
    budget: int
    left_out: list[str]
    above: dict[str, int]
    twin: str | None = None


def arms_of(
    recipe: Recipe, data: TaskData, *, budget: int | None = None, without: Collection[str] = (), batches: int = 24
) -> Arms:
    """Return the arms for a recipe, each at the highest rank that fits the budget and some layer of the model can use.

    Args:
        recipe: What the user has; its method's parameters are the budget (of a full fine-tuning: all-linear at rank 8).
        data: Its data, which the rank plan is made on.
        budget: Parameters of each arm.
        without: Arms that stay out.
        batches: How many training batches the rank plan is made on.

    Raises:
        ValueError: The model can't be had.
    """
    scale = _scale(recipe.method)
    linear = _lora(DEFAULT, scale)
    if budget is None:
        full = recipe.method.name == "full"
        budget = RANK * _cost(recipe, linear) if full else int(plan_recipe(recipe)["enabled"])
    methods: dict[str, Options] = {DEFAULT: linear}
    left_out = []
    try:
        query_value, feed_forward = _targets(_empty(recipe))
        methods["q,v"] = _lora(query_value, scale)
        if feed_forward:
            methods["MLP"] = _lora(feed_forward, scale)
        elif "MLP" not in without:
            left_out.append("MLP: the first block has no projections for plain LoRA but the attention's")
        methods |= {
            "LoR2C": {"name": "lor2c", "r": 1, "lora_alpha": scale},
            "all-linear + residual": {
                **_lora(DEFAULT, scale),
                "name": "heterolora",
                "mode": "off",
                "shortcuts": LAYER_KINDS,
                "shortcut_alpha": scale,
            },
        }
    except ValueError as error:
        left_out.append(f"q,v, MLP, LoR2C and residual paths need to know the model's blocks: {error}")
    most = largest_rank(_empty(recipe))
    methods = {name: _sized(recipe, options, budget, most) for name, options in methods.items() if name not in without}
    if PLANNED not in without:
        try:
            names = _plannable(_empty(recipe), recipe.method.options.get("modules_to_save"))
            planned = plan_ranks(recipe, budget=budget, batches=batches, data=data, scale=scale, target_modules=names)
            methods[PLANNED] = _planned(planned.plan.to_lora_config())
        except ValueError as error:
            left_out.append(f"the rank plan can't be made: {error}")
    saved = recipe.method.options.get("modules_to_save")
    if saved:  # what else trains is the same in every arm
        for options in methods.values():
            options["modules_to_save"] = list(saved)
    twin = None
    if YOURS not in without:
        twin = next((name for name, options in methods.items() if _same(recipe, options)), None)
        methods[YOURS] = recipe.method.model_dump() if twin is None else methods[twin]
    costs = {name: _cost(recipe, options) for name, options in methods.items()}
    return Arms(methods, budget, left_out, {name: cost for name, cost in costs.items() if cost > budget}, twin)


def _same(recipe: Recipe, options: Options) -> bool:
    """Return whether an arm is the recipe's own method, by the configs that PEFT gets."""
    method = Method(**options)
    if method.name != recipe.method.name or method.name == "full":
        return False
    task = "CAUSAL_LM" if kind_of(recipe) == "causal" else "SEQ_CLS"
    configs = [each.build(task, seed=recipe.seed) for each in (method, recipe.method)]
    return configs[0] == configs[1]


def _scale(method: Method) -> float:
    rank, alpha = method.options.get("r"), method.options.get("lora_alpha")
    return float(alpha) / float(rank) if rank and alpha else SCALE


def _lora(targets: str | list[str], scale: float) -> Options:
    return {"name": "lora", "r": 1, "lora_alpha": scale, "target_modules": targets}


def _cost(recipe: Recipe, options: Options) -> int:
    return int(plan_recipe(recipe.model_copy(update={"method": Method(**options)}))["enabled"])


def _sized(recipe: Recipe, options: Options, budget: int, most: int) -> Options:
    """Return an arm of rank 1 at the highest rank that fits and a layer can use; one that does not fit keeps rank 1."""
    rank = max(1, min(budget // _cost(recipe, options), most))
    alphas: Options = {name: options[name] * rank for name in ("lora_alpha", "shortcut_alpha") if name in options}
    return {**options, "r": rank, **alphas}


def _plannable(model: nn.Module, saved: Collection[str] | None) -> list[str]:
    """Return the projections that plain LoRA can be on: not what is trained as a whole, nor what PEFT converts."""
    names = all_linear(model)
    others = {*saved_whole(names, None, saved), *converted(model, names)}
    return [name for name in names if name not in others]


def _planned(config: Any) -> Options:
    patterns = {name: dict(value) for name in ("rank_pattern", "alpha_pattern") if (value := getattr(config, name))}
    targets = config.target_modules if isinstance(config.target_modules, str) else sorted(config.target_modules)
    return {"name": "lora", "r": config.r, "lora_alpha": config.lora_alpha, "target_modules": targets, **patterns}


def _empty(recipe: Recipe) -> nn.Module:
    """Return the recipe's model without weights."""
    with quiet(), torch.device("meta"):
        config = load_config(recipe.model, **head_size(recipe))
        model: nn.Module = model_class("CAUSAL_LM" if kind_of(recipe) == "causal" else "SEQ_CLS").from_config(config)
    return model


def _targets(model: nn.Module) -> tuple[list[str], str | list[str]]:
    """Return the names of query and value, and those of the feed-forward's projections.

    The second are none where there are none, or where PEFT would put plain LoRA on experts in their place.
    """
    anatomy = anatomy_of(model)
    place, block = next(iter(find_blocks(model, anatomy).items()))
    linear = [name for name, module in block.named_modules() if isinstance(module, nn.Linear) and not is_head(name)]
    attention = [name for name in linear if name.startswith(f"{anatomy.attention}.")]
    rest = [name for name in linear if name not in attention]
    if converted(model, [f"{place}.{name}" for name in rest]):
        rest = []
    last = sorted({_last(name) for name in rest})
    if set(last) & {_last(name) for name in attention}:  # PEFT matches ends of names: BERT has two of output.dense
        words = "|".join(re.escape(name) for name in rest)
        return _lasts([anatomy.query, anatomy.value]), rf".*\b{re.escape(anatomy.blocks)}\.\d+\.(?:{words})"
    return _lasts([anatomy.query, anatomy.value]), last


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _lasts(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(map(_last, names)))
