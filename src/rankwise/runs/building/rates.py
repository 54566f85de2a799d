"""Learning rates of their own for parts of what trains, in any Trainer: the head, the factors ``B`` (LoRA+)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer

from rankwise.runs.building.models import is_head
from rankwise.runs.recipes.recipe import Training


class OwnRate(NamedTuple):
    """A rate for a part of the parameters.

    Args:
        belongs: Tells by a parameter's name whether it is of the part.
        rate: The part's learning rate.
        missing: What an optimizer without such parameters is refused with.
    """

    belongs: Callable[[str], bool]
    rate: float
    missing: str


def own_rates(training: Training) -> list[OwnRate]:
    """Return the rates that a recipe gives beside ``learning_rate``."""
    rates = []
    rate, ratio = training.head_learning_rate, training.loraplus_lr_ratio
    if rate is not None:
        words = (
            f"training.head_learning_rate={rate}: the model has no head that trains; leave it out, or name its modules "
            "in method.modules_to_save"
        )
        rates.append(OwnRate(is_head, rate, words))
    if ratio is not None:
        words = f"training.loraplus_lr_ratio={ratio:g}: the method trains no factors lora_A and lora_B; leave it out"
        rates.append(OwnRate(is_up, training.learning_rate * ratio, words))
    return rates


def is_up(name: str) -> bool:
    """Tell by a parameter's name whether it is a factor ``B``, the one that starts at zero."""
    return any(part.startswith(("lora_B", "lora_embedding_B")) for part in name.split("."))


def split_rate_(optimizer: Optimizer, model: nn.Module, own: OwnRate) -> None:
    """Move a part's parameters into groups of their own, behind the others; all but the rate stays as it is.

    Args:
        optimizer: One that has made no step yet.
        model: Names the parameters.
        own: The part, and its rate.

    Raises:
        ValueError: The optimizer has no parameter of the part.
    """
    part = {id(parameter) for name, parameter in model.named_parameters() if own.belongs(name)}
    split = []
    for group in optimizer.param_groups:
        inside = [parameter for parameter in group["params"] if id(parameter) in part]
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in part]
        if inside:
            split.append({**group, "params": inside, "lr": own.rate})
    if not split:
        raise ValueError(own.missing)
    for group in split:
        optimizer.add_param_group(group)


class OwnRates:
    """Mixed into a Trainer: trains parts at rates of their own, on the same schedule as the rest."""

    own_rates: Sequence[OwnRate]

    def create_optimizer(self, *model: Any) -> Optimizer:
        """Return the optimizer, made once; see ``transformers.Trainer.create_optimizer``."""
        trainer: Any = super()
        mine: Any = self
        fresh = mine.optimizer is None
        optimizer: Optimizer = trainer.create_optimizer(*model)
        for own in self.own_rates if fresh else ():
            split_rate_(optimizer, next(iter(model), None) or mine.model, own)
        return optimizer


def with_own_rates(trainer_class: type[Trainer], training: Training) -> type[Trainer]:
    """Return the class with ``OwnRates`` mixed in, itself where everything trains at one rate."""
    rates = own_rates(training)
    return type(trainer_class.__name__, (OwnRates, trainer_class), {"own_rates": rates}) if rates else trainer_class
