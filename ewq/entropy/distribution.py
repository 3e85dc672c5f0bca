"""Statistics of a weight from how often each of its values occurs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ewq.entropy.kernels import PATTERNS
from ewq.entropy.statistics import HISTOGRAM_BINS


@dataclass(frozen=True)
class Distribution:
    """Everything about a weight's values that does not depend on their order."""

    numel: int
    minimum: float
    maximum: float
    mean: float
    second: float
    """Sum of squared deviations from the mean."""
    fourth: float
    """Sum of fourth powers of the deviations."""
    zeros: int
    histogram: NDArray[np.int64]
    """Counts in 256 bins."""
    mass: float
    """``sum e**(w - max)``."""
    weighted: float
    """``sum (w - max) e**(w - max)``."""


def values_of_patterns(dtype: str) -> NDArray[np.float32]:
    """The value of each 16-bit pattern, ``[65536]`` float32, for ``BF16`` or ``F16``."""
    bits = np.arange(PATTERNS, dtype=np.uint16)
    if dtype == "F16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def from_counts(values: NDArray[np.float32], counts: NDArray[np.int64]) -> Distribution:
    """Exact distribution of a weight whose values are ``values[i]``, ``counts[i]`` times each."""
    present = np.flatnonzero(counts)
    narrow, weight = values[present], counts[present]
    wide = narrow.astype(np.float64)
    numel = int(weight.sum())
    mean = float(np.sum(wide * weight)) / numel
    square = (wide - mean) ** 2
    below = wide - wide.max()
    mass = np.exp(below) * weight
    return Distribution(
        numel=numel,
        minimum=float(wide.min()),
        maximum=float(wide.max()),
        mean=mean,
        second=float(np.sum(square * weight)),
        fourth=float(np.sum(square * square * weight)),
        zeros=int(weight[narrow == 0].sum()),
        histogram=histogram_of(narrow, weight),
        mass=float(np.sum(mass)),
        weighted=float(np.sum(mass * below)),
    )


class UnmeasurableError(ValueError):
    """Finite values of which a statistic cannot be taken; the message completes a sentence."""


def bin_edges(minimum: float, maximum: float, dtype: np.dtype[Any]) -> NDArray[np.floating[Any]]:
    """NumPy's 257 edges between the extremes of data of ``dtype``, in that dtype.

    Where it has no 256 bins between them (neighbouring or denormal values, a range beyond its
    largest number) they are made in float64. One value alone is always in one bin.

    Raises:
        UnmeasurableError: float64 has none either.
    """
    if minimum == maximum:
        minimum = maximum = 0.0
    for kind in (dtype, np.dtype(np.float64)):
        with np.errstate(over="ignore", invalid="ignore"):
            possible = np.isfinite(kind.type(maximum) - kind.type(minimum))
        try:
            if possible:
                return np.histogram_bin_edges(np.array([minimum, maximum], kind), HISTOGRAM_BINS)
        except ValueError:  # NumPy: "Cannot create 256 finite-sized bins"
            continue
    raise UnmeasurableError("has values that float64 cannot put into 256 bins")


def histogram_of(values: NDArray[np.float32], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """What ``numpy.histogram(bins=256)`` counts on the values repeated ``counts`` times."""
    edges = bin_edges(values.min(), values.max(), values.dtype)
    index = np.searchsorted(edges, values, side="right") - 1
    index = np.clip(index, 0, HISTOGRAM_BINS - 1)
    return np.bincount(index, weights=counts, minlength=HISTOGRAM_BINS).astype(np.int64)


def shannon_bits(histogram: NDArray[np.int64]) -> float:
    """Shannon entropy in bits of a histogram's shares."""
    counted = histogram[histogram > 0]
    shares = counted / counted.sum()
    return float(-np.sum(shares * np.log2(shares))) + 0.0


def softmax_nats(mass: float, weighted: float) -> float:
    """``H = ln S - T / S`` with ``S = sum e**u``, ``T = sum u e**u``, ``u = w - max``."""
    return float(np.log(mass) - weighted / mass)
