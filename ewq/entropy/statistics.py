"""Statistics of a weight, and how they follow from the distribution of its values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

HISTOGRAM_BINS = 256


@dataclass(frozen=True)
class WeightStatistics:
    """Exact statistics of one weight's values; sums are in float64."""

    numel: int
    minimum: float
    maximum: float
    mean: float
    variance: float
    """Population variance."""
    kurtosis: float
    """Fourth central moment over the squared variance: 3 for a normal weight, 0 for a constant."""
    sparsity: float
    """Share of exact zeros."""
    histogram_entropy: float
    """Shannon entropy in bits of NumPy's 256-bin histogram between minimum and maximum."""
    softmax_entropy: float
    """``-sum p ln p`` in nats, ``p = softmax(vec W)`` (arXiv 2503.04704)."""
    centred_softmax_entropy: float
    """``H - ln n``: softmax entropy without the size of the weight; about ``-variance / 2``."""

    @property
    def square_norm(self) -> float:
        """Sum of the squared values."""
        return self.numel * (self.variance + self.mean * self.mean)


class UnmeasurableError(ValueError):
    """Values of which a statistic cannot be taken; the message completes a sentence."""


def from_counts(values: NDArray[np.float32], counts: NDArray[np.int64]) -> WeightStatistics:
    """Statistics of a weight that holds ``values[i]`` exactly ``counts[i]`` times."""
    present = np.flatnonzero(counts)
    narrow, weight = values[present], counts[present]
    wide = narrow.astype(np.float64)
    numel = int(weight.sum())
    mean = float(np.sum(wide * weight)) / numel
    square = (wide - mean) ** 2
    below = wide - wide.max()
    mass = np.exp(below) * weight
    return from_sums(
        numel=numel,
        minimum=float(wide.min()),
        maximum=float(wide.max()),
        mean=mean,
        second=float(np.sum(square * weight)),
        fourth=float(np.sum(square * square * weight)),
        zeros=int(weight[narrow == 0].sum()),
        histogram=_histogram(narrow, weight),
        mass=float(np.sum(mass)),
        weighted=float(np.sum(mass * below)),
    )


def from_sums(
    *,
    numel: int,
    minimum: float,
    maximum: float,
    mean: float,
    second: float,
    fourth: float,
    zeros: int,
    histogram: NDArray[np.int64],
    mass: float,
    weighted: float,
) -> WeightStatistics:
    """Statistics from sums over the values: ``second`` and ``fourth`` powers of deviations from the
    mean, ``mass = sum e**u`` and ``weighted = sum u e**u`` of ``u = w - maximum``."""
    variance = second / numel
    # H = ln S - T / S with S = sum e**u, T = sum u e**u, u = w - max.
    softmax = float(np.log(mass) - weighted / mass)
    return WeightStatistics(
        numel=numel,
        minimum=minimum,
        maximum=maximum,
        mean=mean,
        variance=variance,
        kurtosis=fourth / numel / variance**2 if variance**2 > 0 else 0.0,
        sparsity=zeros / numel,
        histogram_entropy=shannon_bits(histogram),
        softmax_entropy=softmax,
        centred_softmax_entropy=softmax - math.log(numel),
    )


def bin_edges(minimum: float, maximum: float, dtype: np.dtype[Any]) -> NDArray[np.floating[Any]]:
    """NumPy's 257 edges between the extremes of data of ``dtype``, in that dtype.

    Where it has no 256 bins between them (neighbouring or denormal values, a range beyond its
    largest number) they are made in float64, or an UnmeasurableError is raised where that has none
    either. One value alone is always in one bin.
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


def _histogram(values: NDArray[np.float32], counts: NDArray[np.int64]) -> NDArray[np.int64]:
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
