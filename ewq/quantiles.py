"""Sample quantiles with a standard error, from two values on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ewq.errors import MeasurementError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Quantile:
    """One quantile of a sample."""

    value: float
    stderr: float


def quantile(values: ArrayLike, share: float) -> Quantile:
    """The ``share`` quantile (linear interpolation) and its Maritz-Jarrett standard error.

    The error is the spread of the order statistics under the beta distribution
    of a quantile's position, with Harrell and Davis's parameters
    ``(n + 1) share`` and ``(n + 1)(1 - share)``, so that it exists for the tenth
    percentile of five rounds too. Values are taken as independent.

    Raises:
        MeasurementError: fewer than two values, or a share outside ``(0, 1)``.
    """
    from scipy.special import betainc

    ordered = np.sort(np.asarray(values, dtype=np.float64).ravel())
    n = len(ordered)
    if n < 2 or not 0 < share < 1:
        raise MeasurementError(
            f"no error for the {share} quantile of {n} values: at least 2 are needed"
        )
    ranks = np.arange(n + 1) / n
    weights = np.diff(betainc((n + 1) * share, (n + 1) * (1 - share), ranks))
    value = float(np.quantile(ordered, share))
    deviations = ordered - value  # centred: squares of raw values would cancel badly
    first, second = float(weights @ deviations), float(weights @ deviations**2)
    return Quantile(value, math.sqrt(max(0.0, second - first**2)))
