"""A figure as it is drawn: in the axis's unit, with its error and its 95 % interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ewq.measurement import Metric


@dataclass(frozen=True)
class Estimate:
    """A value, how sure it is, and on how many independent parts that rests."""

    value: float
    stderr: float | None = None
    freedom: int | None = None
    """Degrees of freedom of ``stderr``; ``None`` for the normal distribution."""

    @classmethod
    def of(cls, metric: Metric, factor: float = 1.0) -> Estimate:
        """A metric in another unit."""
        error = None if metric.stderr is None else factor * metric.stderr
        return cls(factor * metric.value, error, metric.freedom)

    @classmethod
    def percent_of_ratio(cls, metric: Metric) -> Estimate:
        """A logarithm of a ratio as a change in percent."""
        ratio = math.exp(metric.value)
        error = None if metric.stderr is None else 100 * ratio * metric.stderr
        return cls(100 * (ratio - 1), error, metric.freedom)

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval; zero where no error is known."""
        from ewq.stats import half_width

        return half_width(self.stderr, self.freedom) if self.stderr else 0.0

    @property
    def bounds(self) -> tuple[float, float]:
        """Ends of the 95 % interval."""
        return self.value - self.half_width, self.value + self.half_width

    @property
    def told_from_zero(self) -> bool:
        """Whether the interval leaves zero out; never where no error is known."""
        return self.stderr is not None and abs(self.value) > self.half_width
