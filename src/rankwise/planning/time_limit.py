"""A limit on the time of a training step, for a joint choice: depth is paid once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from rankwise.planning.step_time import StepTime
from rankwise.rules.joint import TimeRoom
from rankwise.rules.kinds import kind_of


@dataclass(frozen=True)
class TimeLimit:
    """A share of the time that a step of uniform LoRA takes.

    Args:
        share: The share.
        step: The parts of a step.
        uniform: The ranks of uniform LoRA.
        prefix_cache: Whether what runs below the lowest path is kept and not run, in the plan's steps.
    """

    share: float
    step: StepTime
    uniform: Mapping[str, int]
    prefix_cache: bool = False

    def share_of(self, ranks: Mapping[str, int]) -> float:
        """Return how long a step with these ranks takes, in steps of uniform LoRA."""
        return self.step.step(ranks, prefix_cache=self.prefix_cache) / self.step.step(self.uniform)

    def lowest(self, names: Iterable[str]) -> int:
        """Return the lowest block whose backward pass runs for paths."""
        return min(self.step.depths[name] for name in names)

    def rooms(self) -> Iterator[tuple[set[str], TimeRoom]]:
        """Yield paths that may be chosen together, and the time that their own work may take.

        The paths are those for which the backward pass goes down to one block at most; the shallowest come first.

        Raises:
            ValueError: The limit is below the step with the cheapest path.
        """
        names = list(self.step.depths)
        limit = self.share * self.step.step(self.uniform)
        first = np.array([self.step.first[name] for name in names])
        more = np.array([self.step.more[name] for name in names])
        rooms = []
        for depth in sorted(set(self.step.depths.values()), reverse=True):
            allowed = {name for name in names if self.step.depths[name] >= depth}
            source = min(self.step.sources[name] for name in allowed) if self.prefix_cache else 0
            left = limit - self.step.frozen(depth, source)
            if left >= min(self.step.first[name] for name in allowed):
                rooms.append((allowed, TimeRoom(left, first, more)))
        if not rooms:
            least = min(self.share_of({name: 1}) for name in names)
            keep = "" if self.prefix_cache else ", or keep the frozen prefix in training and set prefix_cache=True"
            raise ValueError(
                f"time_limit={self.share!r} is below the quickest step, which takes {least:.2f} of that of uniform "
                f"LoRA: ask for more{keep}"
            )
        yield from rooms

    def widest(self, costs: Mapping[str, int]) -> float:
        """Return the most that one rank each of paths which have room together costs, in parameters."""
        found = []
        for allowed, room in self.rooms():
            seconds = sum(self.step.first[name] for name in allowed)
            found.append(sum(costs[name] for name in allowed) * min(1.0, room.limit / seconds))
        return max(found)


def uniform_ranks(costs: Mapping[str, int], budget: int) -> dict[str, int]:
    """Return uniform LoRA's ranks under a budget: the same for all projections, at least 1; all paths without any."""
    linear = {name: cost for name, cost in costs.items() if kind_of(name) == "linear"} or dict(costs)
    return dict.fromkeys(linear, max(budget // sum(linear.values()), 1))
