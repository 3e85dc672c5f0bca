"""A figure with its error: as text, and as the interval that plots draw."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ewq.measurement import Metric

MISSING = "–"
"""What stands for a figure that was not measured."""


@dataclass(frozen=True)
class Estimate:
    """A value in the unit it is shown in, and how sure it is."""

    value: float
    stderr: float | None = None
    freedom: int | None = None
    """Degrees of freedom of ``stderr``; ``None`` for the normal distribution."""

    @classmethod
    def of(cls, metric: Metric, scale: float = 1.0) -> Estimate:
        """A metric times ``scale``."""
        stderr = None if metric.stderr is None else scale * metric.stderr
        return cls(scale * metric.value, stderr, metric.freedom)

    @classmethod
    def percent_change(cls, log_ratio: Metric) -> Estimate:
        """The logarithm of a ratio as a change in percent."""
        ratio = math.exp(log_ratio.value)
        stderr = None if log_ratio.stderr is None else 100 * ratio * log_ratio.stderr
        return cls(100 * math.expm1(log_ratio.value), stderr, log_ratio.freedom)

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval; zero where no error is known."""
        from ewq.stats import half_width

        return half_width(self.stderr, self.freedom) if self.stderr else 0.0

    @property
    def differs_from_zero(self) -> bool:
        """Whether the 95 % interval excludes zero; never where no error is known."""
        return self.stderr is not None and abs(self.value) > self.half_width

    def text(self, digits: int, *, signed: bool = False, error: bool = True) -> str:
        """``12.34 ±0.05``; the error is left out where it is unknown or not wanted."""
        value = round(self.value, digits) + 0.0  # no "-0.00"
        text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
        return f"{text} ±{self.stderr:.{digits}f}" if error and self.stderr is not None else text

    def rounded(self) -> str:
        """As many digits as the error leaves certain: two of its own, of at most five decimals."""
        scale = self.stderr or abs(self.value)
        first = math.floor(math.log10(scale)) if scale else 0
        return self.text(min(5, max(0, (1 if self.stderr else 2) - first)))


def figure_text(estimate: Estimate | None, digits: int, *, signed: bool = False) -> str:
    """:meth:`Estimate.text`, or a dash where nothing was measured."""
    return MISSING if estimate is None else estimate.text(digits, signed=signed)


def decimals_for(value: float) -> int:
    """Decimal places that leave three digits."""
    return max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
