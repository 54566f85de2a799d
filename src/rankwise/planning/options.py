"""The options of a rank plan: their values checked before any pass, and by name where they come as a mapping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, cast

import torch

from rankwise.distributed import of_every_process, world_size
from rankwise.errors import check_choice, nearest, remedy
from rankwise.fields import wrong_field
from rankwise.planning.step_time import StepTime
from rankwise.rules.joint import check_breadth, check_damping
from rankwise.scores.components import DIRECTIONS
from rankwise.scores.probe import Batch
from rankwise.scores.signals import REDUCTIONS

# Options of rank_plan that a search has from elsewhere, and from where.
ELSEWHERE = {
    **dict.fromkeys(("budget", "target_modules", "seed"), "it is a field of HeteroLoraConfig"),
    "space": "HeteroLoraConfig has target_modules= and shortcuts= for it",
    "scale": "HeteroLoraConfig has lora_alpha= and r= for it, whose quotient is the scale",
    "keep_head": "the head is put back",
    **dict.fromkeys(("compute_loss", "draw_losses"), "it is an argument beside plan="),
    "autocast": "it is what training runs in",
}


class PlanOptions(TypedDict, total=False):
    """Options of a rank plan by name, for a search that makes one; see ``rankwise.rank_plan`` for each."""

    damping: float
    directions: str
    components: int | None
    halves: bool
    cross_validate: bool
    least_overlap: float
    breadth: float
    head_warmup: int | None
    reduction: str
    time_limit: float | None
    prefix_cache: bool
    step_time: StepTime | None


@dataclass(frozen=True)
class Choice:
    """How ranks are chosen; see ``rankwise.rank_plan``, where each is explained.

    Raises:
        ValueError: A value is out of range.
    """

    damping: float = 1.0
    directions: str = "adam"
    components: int | None = None
    halves: bool = True
    cross_validate: bool = False
    least_overlap: float = 0.0
    breadth: float = 0.5
    reduction: str = "auto"
    time_limit: float | None = None
    prefix_cache: bool = False
    step_time: StepTime | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value, before any pass is made."""
        components: Any = self.components
        if components is not None and (
            isinstance(components, bool) or not isinstance(components, int) or components < 1
        ):
            raise ValueError(f"components={components!r} must be a whole number of at least 1, or None")
        wrong = wrong_field(Choice, vars(self))
        if wrong is not None:
            raise ValueError(wrong)
        check_damping(self.damping)
        check_breadth(self.breadth)
        check_choice("directions", self.directions, DIRECTIONS)
        check_choice("reduction", self.reduction, REDUCTIONS)
        if not 0.0 <= self.least_overlap <= 1.0:
            raise ValueError(f"least_overlap={self.least_overlap!r} must lie in [0, 1]; 0 never falls back")
        if self.time_limit is not None and not 0 < self.time_limit < math.inf:
            raise ValueError(
                f"time_limit={self.time_limit!r} must be a positive share of the time of a step of uniform LoRA, such "
                "as 0.6"
            )
        for name, given in (("prefix_cache", self.prefix_cache), ("step_time", self.step_time)):
            if given and self.time_limit is None:
                raise ValueError(f"{name}= belongs to a time limit, and none is set: give time_limit=, or leave it out")

    @property
    def parts(self) -> int:
        """Into how many parts the batches are divided."""
        return 2 if self.halves or self.cross_validate else 1

    def check_batches(self, batches: Sequence[Batch], device: torch.device) -> int:
        """Return how many batches the process with the fewest has; all of them refuse fewer than the choice needs."""
        fewest = int(min(count for (count,) in of_every_process([len(batches)], device)))
        where = " in one of the processes" if world_size() > 1 else ""
        if not fewest:
            raise ValueError(f"a rank plan needs training batches, got none{where}")
        if fewest < self.parts:
            raise ValueError(
                f"halves and cross_validate need at least 2 batches, got 1{where}: give more, or "
                f"{remedy(halves=False, cross_validate=False)}"
            )
        return fewest


def choice_from(options: PlanOptions | None, *, seed: int) -> tuple[Choice, int | None]:
    """Return how to choose, and the steps of ``head_warmup``.

    Args:
        options: What the user gave as ``plan=``; None for the defaults of ``rankwise.rank_plan``.
        seed: The config's.

    Raises:
        ValueError: They are no mapping, a name is unknown, or a value is out of range or of another type.
    """
    given: Any = {} if options is None else options
    if not isinstance(given, Mapping):
        raise ValueError(
            f"plan={given!r:.80} must be a mapping of options of rankwise.rank_plan, such as {{'halves': False}}"
        )
    allowed = list(PlanOptions.__annotations__)
    for name in given:
        if name in ELSEWHERE:
            raise ValueError(f"plan={{{name!r}: ...}} can't be set for a search: {ELSEWHERE[name]}")
        if name not in allowed:
            raise ValueError(
                f"plan={{{name!r}: ...}} is no option of a rank plan{nearest(str(name), allowed) or '.'} It has "
                f"{', '.join(allowed)}"
            )
    wrong = wrong_field(Choice, given)
    if wrong is not None:
        raise ValueError(f"plan: {wrong}")
    values = dict(given)
    warmup = cast("int | None", values.pop("head_warmup", None))
    if warmup is not None and (isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0):
        raise ValueError(f"plan: head_warmup={warmup!r} must be a whole number of steps, or None")
    return Choice(**values, seed=seed), warmup
