"""What a task returns: metrics that carry their uncertainty, and the items behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ewq.errors import MeasurementError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True)
class Metric:
    """One measured figure.

    Raises:
        MeasurementError: the value or its error is NaN or infinite. A failed
            measurement must never be stored as a number.
    """

    value: float
    unit: str
    """``fraction``, ``nats``, ``bits``, ``tokens/s``, ``bytes``, ``s``, ``ratio``, ``p`` ..."""
    higher_is_better: bool | None
    """``None`` where no direction is better, such as the share of answers that are A."""
    n: int
    """Observations behind the value: questions, tokens, rounds; 1 for a count of bytes."""
    stderr: float | None = None
    """Standard error in the value's unit; ``None`` only for exact counts and p-values."""
    freedom: int | None = None
    """Degrees of freedom of ``stderr`` where it rests on fewer parts than ``n``: clusters - 1."""
    interval: tuple[float, float] | None = None
    """95 % bounds of the value, of paired differences."""

    def __post_init__(self) -> None:
        low, high = self.interval or (None, None)
        numbers = {"value": self.value, "stderr": self.stderr, "low": low, "high": high}
        for label, number in numbers.items():
            if number is not None and not math.isfinite(number):
                raise MeasurementError(f"{label} is {number}: no measurement, so not stored")

    def to_json(self) -> dict[str, Json]:
        """The metric as stored under ``extra_info["ewq"]["metrics"]``."""
        stored: dict[str, Json] = {
            "value": float(self.value),
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
            "stderr": None if self.stderr is None else float(self.stderr),
            "n": int(self.n),
        }
        if self.freedom is not None:
            stored["freedom"] = int(self.freedom)
        if self.interval is not None:
            stored["interval"] = [float(bound) for bound in self.interval]
        return stored

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Metric:
        """The metric that :meth:`to_json` stored.

        Raises:
            TypeError, ValueError: other keys, or an interval that is no pair.
        """
        if "interval" not in stored:
            return cls(**stored)
        low, high = stored["interval"]
        return cls(**{**stored, "interval": (low, high)})


@dataclass(frozen=True)
class TaskResult:
    """The outcome of one task on one model."""

    task: str
    settings: Mapping[str, Json]
    """Everything two results must share to be comparable: protocol, data digest, batch policy."""
    metrics: Mapping[str, Metric]
    items: Json
    """Per-item records, compact: what a later paired comparison needs."""
    notes: tuple[str, ...] = ()
    """Sentences for people, such as "accuracy is at chance level"."""
    side: Mapping[str, Json] = field(default_factory=dict)
    """Bulky extras for reports (generation samples, answers by subject); never compared."""
