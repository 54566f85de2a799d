"""A learning rate of its own for the head, in any Trainer."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer

from rankwise.runs.building.models import is_head


def split_head_(optimizer: Optimizer, model: nn.Module, rate: float) -> None:
    """Move the head's parameters into groups of their own, behind the others; everything but the rate stays as it is.

    Args:
        optimizer: One that has made no step yet.
        model: Names the parameters.
        rate: The head's learning rate.

    Raises:
        ValueError: The optimizer has no parameter of a head.
    """
    heads = {id(parameter) for name, parameter in model.named_parameters() if is_head(name)}
    split = []
    for group in optimizer.param_groups:
        own = [parameter for parameter in group["params"] if id(parameter) in heads]
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in heads]
        if own:
            split.append({**group, "params": own, "lr": rate})
    if not split:
        raise ValueError(
            f"training.head_learning_rate={rate}: the model has no head that trains; leave it out, or name its modules "
            "in method.modules_to_save"
        )
    for group in split:
        optimizer.add_param_group(group)


class HeadRate:
    """Mixed into a Trainer: trains the head at ``head_learning_rate``, on the same schedule as the rest."""

    head_learning_rate: float

    def create_optimizer(self, *model: Any) -> Optimizer:
        """Return the optimizer, made once; see ``transformers.Trainer.create_optimizer``."""
        trainer: Any = super()
        mine: Any = self
        fresh = mine.optimizer is None
        optimizer: Optimizer = trainer.create_optimizer(*model)
        if fresh:
            split_head_(optimizer, next(iter(model), None) or mine.model, self.head_learning_rate)
        return optimizer


def with_head_rate(trainer_class: type[Trainer], rate: float | None) -> type[Trainer]:
    """Return the class with ``HeadRate`` mixed in, itself where the head has no rate of its own."""
    if rate is None:
        return trainer_class
    return type(trainer_class.__name__, (HeadRate, trainer_class), {"head_learning_rate": rate})
