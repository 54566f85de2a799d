"""What is under way for the paths of one adapter: a scoring window, a search, edits. A copy of a model starts idle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from rankwise.paths.low_rank_path import LowRankPath

if TYPE_CHECKING:
    from rankwise.paths.path_set import PathSet


class Recorder(Protocol):
    """Something that sees every path's source and destination while a window is open."""

    def tap(self, path: LowRankPath, x: Tensor, result: Tensor) -> Tensor:
        """Return ``result`` with a tap on it."""
        ...

    def drop(self) -> None:
        """Forget the step under way."""
        ...

    def keep(self, names: set[str]) -> None:
        """Forget all but the named paths."""
        ...


class Listening(Protocol):
    """What listens to the optimizer that owns the paths' parameters; ``rankwise.search`` has the classes."""

    paths: PathSet
    step: int
    begun: bool
    automatic: bool

    @property
    def knows_epochs(self) -> bool:
        """Whether it was told the length of training."""
        ...

    def owns(self, optimizer: Optimizer) -> bool:
        """Tell whether an optimizer is the one whose steps count."""
        ...

    def begin(self) -> None:
        """Begin, before the first step."""
        ...

    def before_step(self, optimizer: Optimizer) -> None:
        """Prepare a step."""
        ...

    def fold(self) -> None:
        """Take what the step that is being made tells."""
        ...

    def after_step(self) -> None:
        """Do what is due after a step."""
        ...

    def idleness(self) -> str | None:
        """Return what to warn of if training ended now."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        ...

    def close(self) -> None:
        """Stop listening."""
        ...


@dataclass
class Session:
    """The mutable half of a ``PathSet``.

    Args:
        recorder: Sees sources and destinations while a scoring window is open, else None.
        probing: Whether all paths contribute, as in a probe.
        tied: Whether paths that are off are tied into the graph (distributed training).
        listener: The search or the edits under way, if any.
        detached: Whether they were ended by hand.
        unheard: Whether a forward pass with gradients came in evaluation mode, where nothing listens.
        folder: Where the adapter was last saved to or loaded from.
        before_any_step: Called with every optimizer before it steps, whose paths it may own or not.
    """

    recorder: Recorder | None = None
    probing: bool = False
    tied: bool = False
    listener: Listening | None = None
    detached: bool = False
    unheard: bool = False
    folder: Path | None = None
    before_any_step: Callable[[Optimizer], None] | None = None
