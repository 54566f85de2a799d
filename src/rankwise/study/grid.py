"""Learning rates on a geometric grid, and the choice among them; pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field, model_validator

LARGEST_GROWTH = 8  # steps that a grid grows beyond what was asked for


class Rates(BaseModel):
    """A geometric grid of learning rates: from, from * factor, from * factor^2, ... up to ``to``.

    Args:
        low: The lowest (``from`` in a file).
        to: The highest.
        factor: Between neighbours; 1.78 makes four to a decade.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    low: float = Field(gt=0, alias="from", allow_inf_nan=False)
    to: float = Field(gt=0, allow_inf_nan=False)
    factor: float = Field(default=1.78, ge=1.05, allow_inf_nan=False)

    @model_validator(mode="after")
    def _rises(self) -> Rates:
        if self.to < self.low:
            raise ValueError(f"from={self.low:g} is above to={self.to:g}: the grid goes upwards")
        return self

    def grid(self, down: int = 0, up: int = 0) -> list[float]:
        """Return the rates, with so many more below and above, to four digits."""
        steps = math.floor(math.log(self.to / self.low) / math.log(self.factor) + 1e-6)
        return [float(f"{self.low * self.factor**step:.4g}") for step in range(-down, steps + 1 + up)]


def lowest(means: Mapping[float, float]) -> float | None:
    """Return the rate with the lowest mean loss, the lower rate if two are equal; none if no loss is a number."""
    finite = {rate: mean for rate, mean in means.items() if math.isfinite(mean)}
    return min(finite, key=lambda rate: (finite[rate], rate)) if finite else None


def at_edge(rate: float, grid: Sequence[float]) -> int:
    """Return -1 where a rate is the lowest of the grid, 1 where it is the highest, 0 inside."""
    return -1 if rate == grid[0] else int(rate == grid[-1])
