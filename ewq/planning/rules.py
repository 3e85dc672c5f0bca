"""The factor rule: precisions from scores by distance below their mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ewq.errors import PlanError
from ewq.precision import Precision


@dataclass(frozen=True)
class Spread:
    """Mean and population standard deviation of the units' scores, each unit counting once."""

    mean: float
    std: float


def spread(scores: Sequence[float]) -> Spread:
    """Mean and population standard deviation.

    Deviations are taken from the first score, so equal scores have exactly
    their own value as mean and no spread.
    """
    origin = scores[0]
    shift = math.fsum(score - origin for score in scores) / len(scores)
    square = math.fsum((score - origin - shift) ** 2 for score in scores) / len(scores)
    return Spread(origin + shift, math.sqrt(square))


def factor_thresholds(of: Spread, factor: float) -> dict[str, float]:
    """Least score for ``raw`` and for ``8bit``: ``mean`` and ``mean - factor * std``.

    Raises:
        PlanError: the factor is negative or not a number.
    """
    if not math.isfinite(factor) or factor < 0:
        raise PlanError(f"factor is {factor}; it must be a number from 0 up, such as 0.65")
    return {"raw": of.mean, "8bit": of.mean - factor * of.std}


def by_thresholds(scores: Sequence[float], thresholds: dict[str, float]) -> list[Precision]:
    """``raw`` from its threshold up, ``8bit`` from its own up, else ``4bit``."""
    return [_precision(score, thresholds) for score in scores]


def _precision(score: float, thresholds: dict[str, float]) -> Precision:
    if score >= thresholds["raw"]:
        return Precision.RAW
    return Precision.EIGHT_BIT if score >= thresholds["8bit"] else Precision.FOUR_BIT
