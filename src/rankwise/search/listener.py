"""What listens to the optimizer that owns a model's paths: the base of searches and of scheduled edits."""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn
from torch.optim import Optimizer

from rankwise.distributed import world_size
from rankwise.paths.driver import driver
from rankwise.paths.path_set import PathSet, beside_paths, path_set
from rankwise.rules.records import record_of
from rankwise.scores.likelihood import DrawLosses
from rankwise.scores.probe import Autocast, Batch, ComputeLoss

GREEDY = {
    "LoraFAOptimizer",
    "LBFGS",
}  # optimizers that reckon with gradients, or with earlier ones, without asking whether there are any


@dataclass(frozen=True)
class Training:
    """What a training loop knows and an optimizer's steps don't tell.

    Args:
        steps_per_epoch: Optimizer steps in an epoch.
        total_steps: Optimizer steps of the whole training.
        batches: Returns the probe batches of a search of this config, by the search's number; None without batches.
        obstacle: Why there are none, and what would help.
        compute_loss: Called with (model, batch), for losses that the model does not compute itself; the batch is on
            the model's device.
        draw_losses: For such losses, see ``rankwise.score_paths``.
        autocast: Makes the context of a probe's forward pass.
        loss_scale: Returns the factor that losses are scaled by.
        measure: Called with the model around each scheduled edit.
    """

    steps_per_epoch: int | None = None
    total_steps: int | None = None
    batches: Callable[[Any, int], Iterable[Batch]] | None = None
    obstacle: str | None = None
    compute_loss: ComputeLoss | None = None
    draw_losses: DrawLosses | None = None
    autocast: Autocast = nullcontext
    loss_scale: Callable[[], float] | None = None
    measure: Callable[[nn.Module], float] | None = None


class Listener:
    """Counts optimizer steps and sees to it that each moves what is on, only. What it does besides is the subclass's.

    A path set with neither search nor edits has a plain one while some of its paths are off.

    Args:
        model: A model with rankwise paths; under DDP the unwrapped one.
        optimizer: The optimizer to listen to; any that owns the paths' parameters if left out.
        adapter: The adapter; the active one if left out.

    Attributes:
        step: Optimizer steps done.
        earlier: How many records of the history an earlier training left.
        begun: Whether the first forward pass has been seen, or a checkpoint loaded.
        automatic: Whether a callback made it, for one run of a Trainer.
    """

    automatic = False

    def __init__(self, model: nn.Module, optimizer: Optimizer | None = None, *, adapter: str | None = None) -> None:
        given: Any = optimizer
        if given is not None and not isinstance(getattr(given, "param_groups", None), list):
            raise ValueError(
                f"optimizer is a {type(given).__name__}, which has no param_groups: training batches are given by "
                "name, batches=..."
            )
        self.paths: PathSet = path_set(model, adapter)
        # Weak: the model holds this through its session, and a cycle would keep both in memory after a run.
        self._model = weakref.ref(model)
        self._optimizer = weakref.ref(optimizer) if optimizer is not None else None
        self.step = 0
        self.earlier = len(self.paths.history)
        self.seen = 0  # searches or edits; loading the best checkpoint at the end takes later ones out of the history
        self.begun = False

    @classmethod
    def of(cls, model: nn.Module, adapter: str, training: Training) -> Listener:
        """Make one for an adapter, with what the training loop knows."""
        return cls(model, adapter=adapter)

    def listen(self) -> None:
        """Take the path set over."""
        self.paths.session.listener = self
        self.paths.session.recorder = None
        self.paths.session.detached = False
        # DDP waits for every parameter that requires a gradient, so what is off is tied in; one process needs no tie.
        self.paths.session.tied = world_size() > 1
        _allow_recompiling(self.planned_changes)
        driver().listen(self.paths)

    @property
    def knows_epochs(self) -> bool:
        """Whether it was told the length of training, as a callback tells it."""
        return False

    @property
    def planned_changes(self) -> int:
        """How often what is on may change, as far as that is known."""
        return 0

    @property
    def config(self) -> Any:
        """The adapter's config."""
        return self.paths.config

    @cached_property
    def beside(self) -> list[nn.Parameter]:
        """The model's parameters that no path has; looked for once, as that walks the whole model."""
        return beside_paths(self.model, self.paths)

    @property
    def model(self) -> nn.Module:
        """The model: what is called with a batch, of which the adapted one may be a part."""
        model = self._model()
        assert model is not None
        return model

    @model.setter
    def model(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer that owns the paths' parameters, once known."""
        return self._optimizer() if self._optimizer is not None else None

    def owns(self, optimizer: Optimizer) -> bool:
        """Tell whether an optimizer is the one whose steps count: it holds the first trainable parameter of a path.

        Sharding replaces parameters, so the model's current one is looked for at each step.
        """
        if not self.paths.present:
            self.close()
            return False
        first = self.paths.first_trainable
        return any(parameter is first for group in optimizer.param_groups for parameter in group["params"])

    def begin(self) -> None:
        """Begin. The first training forward does it, unless it was done before."""
        self.begun = True

    def before_step(self, optimizer: Optimizer) -> None:
        """See to it that the optimizer moves enabled paths only.

        Where gradients are reduced over processes, a path that is off may have got one, and a gradient of zeros would
        still let momentum and weight decay move it.

        Raises:
            ValueError: The optimizer needs a gradient of every parameter.
        """
        self._optimizer = weakref.ref(optimizer)
        if world_size() == 1:  # another state may have been laid over the model since its forward pass, for a teacher
            self.paths.refresh()
        # None and not zero: optimizers skip what has no gradient, but decay and move by momentum what has zeros.
        idle = self.paths.idle_parameters()
        if idle and any(cls.__name__ in GREEDY for cls in type(optimizer).__mro__):
            raise ValueError(
                f"{type(optimizer).__name__} needs gradients of all paths, and those that are off have none: use "
                "another optimizer, such as torch.optim.AdamW (to train lora_B alone, freeze every lora_A by hand with "
                "path.lora_A.requires_grad_(False)), or set mode='off'"
            )
        for parameter in idle:
            parameter.grad = None
        self.fold()

    def fold(self) -> None:
        """Take what the step that is being made tells."""

    def after_step(self) -> None:
        """Count the step."""
        self.step += 1

    def idleness(self) -> str | None:
        """Return what to warn of if training ended now: that something asked for never happened."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs that is not in the adapter's tensors."""
        return {
            "step": self.step,
            "earlier": self.earlier,
            "tap_seconds": 0.0,
            "history": [record.to_dict() for record in self.paths.history],
            "sums": {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        self.step, self.earlier = state["step"], state.get("earlier", 0)  # version 0.1 wrote none
        self.paths.history[:] = map(record_of, state["history"])
        self.begun = True

    def close(self) -> None:
        """Stop listening; what is on stays."""
        self.paths.session.recorder = None
        self.paths.session.listener = None
        driver().forget(self.paths)


def _allow_recompiling(changes: int) -> None:
    """Let ``torch.compile``, where it is in use, compile anew for each change of what is on.

    At its limit of 8 it would run the model uncompiled for the rest of the training, after a single warning.
    """
    if "torch._dynamo" in sys.modules:
        dynamo: Any = sys.modules["torch._dynamo"].config
        dynamo.recompile_limit = max(dynamo.recompile_limit, 2 * changes + 8)  # training and evaluation


def warn_if_idle(paths: PathSet) -> None:
    """Warn if a search or edits were asked for and training began, but they never happened."""
    listener = paths.session.listener
    reason = listener.idleness() if listener is not None else None
    if reason is not None:
        warnings.warn(reason, stacklevel=2)
