"""From the stored tensors of one weight to its statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ewq.entropy import kernels
from ewq.entropy.chunks import Piece, chunk_length, chunks
from ewq.entropy.distribution import (
    Distribution,
    UnmeasurableError,
    bin_edges,
    from_counts,
    shannon_bits,
    softmax_nats,
    values_of_patterns,
)
from ewq.entropy.statistics import HISTOGRAM_BINS, WeightStatistics

FULL = 2**31
"""Values that 32-bit counts take for certain before they are moved on."""
table_of = cache(values_of_patterns)


@cache
def not_finite(dtype: str) -> NDArray[np.intp]:
    """Patterns that are NaN or infinite."""
    return np.flatnonzero(~np.isfinite(table_of(dtype)))


class NotFiniteError(ValueError):
    """The weight holds NaN or infinity."""


def measure_patterns(pieces: Iterable[Piece], dtype: str) -> WeightStatistics:
    """Statistics of a 16-bit weight (``BF16`` or ``F16``), given as bit patterns, in one pass.

    Raises:
        NotFiniteError: a value is NaN or infinite.
    """
    counts = np.zeros((kernels.TABLES, kernels.PATTERNS), np.uint32)
    total = np.zeros(kernels.PATTERNS, np.int64)
    nf4, int8 = _Sum(), _Sum()
    counted = 0
    for piece in pieces:
        if counted + piece.values.size >= FULL:
            _drain(counts, total)
            counted = 0
        step = chunk_length(piece.in_features)
        errors = kernels.tally(piece.values, piece.in_features, step, dtype == "F16", counts)
        nf4.add(errors[0])
        int8.add(errors[1])
        counted += piece.values.size
    _drain(counts, total)
    return statistics_of_counts(total, dtype, nf4.total, int8.total)


def _drain(counts: NDArray[np.uint32], total: NDArray[np.int64]) -> None:
    """Move 32-bit counts to 64 bits before they can overflow."""
    for table in counts:
        total += table
    counts[:] = 0


class _Sum:
    """Exact sum of few floats."""

    def __init__(self) -> None:
        self._parts: list[float] = []

    def add(self, part: float) -> None:
        self._parts.append(part)

    @property
    def total(self) -> float:
        return math.fsum(self._parts)


def statistics_of_counts(
    counts: NDArray[np.int64], dtype: str, nf4_square: float, int8_square: float
) -> WeightStatistics:
    """Statistics from the counts of all 65,536 patterns and the squared rounding errors.

    Raises:
        NotFiniteError: a value is NaN or infinite.
    """
    table = table_of(dtype)
    if counts[not_finite(dtype)].any():
        raise NotFiniteError
    return _statistics(from_counts(table, counts), nf4_square, int8_square)


def measure_floats(pieces: Callable[[], Iterable[Piece]]) -> WeightStatistics:
    """Statistics of a float32 or float64 weight in two streaming passes.

    ``pieces`` is called once per pass.

    Raises:
        NotFiniteError: a value is NaN or infinite.
        UnmeasurableError: a float64 value beyond float32, or no 256 bins between the values.
    """
    extents = [kernels.extent(chunk) for piece in pieces() for chunk in chunks(piece)]
    if not all(extent[4] for extent in extents):
        raise NotFiniteError
    numel = sum(piece.values.size for piece in pieces())
    minimum = min(extent[0] for extent in extents)
    maximum = max(extent[1] for extent in extents)
    if max(-float(minimum), float(maximum)) > float(np.finfo(np.float32).max):
        raise UnmeasurableError("has values beyond float32, which no quantized format can hold")
    mean = math.fsum(extent[2] for extent in extents) / numel
    edges = bin_edges(minimum, maximum, next(iter(pieces())).values.dtype)
    histogram = np.zeros(HISTOGRAM_BINS, np.int64)
    sums: list[Sequence[float]] = []
    nf4, int8 = _Sum(), _Sum()
    for piece in pieces():
        for chunk in chunks(piece):
            kernels.count_bins(chunk, edges, histogram)
            sums.append(kernels.moments(chunk, mean, float(maximum)))
            narrow = chunk.astype(np.float32, copy=False)
            errors = kernels.square_errors(narrow, piece.in_features)
            nf4.add(errors[0])
            int8.add(errors[1])
    second, fourth, mass, weighted = (math.fsum(column) for column in zip(*sums, strict=True))
    distribution = Distribution(
        numel=numel,
        minimum=float(minimum),
        maximum=float(maximum),
        mean=mean,
        second=second,
        fourth=fourth,
        zeros=sum(int(extent[3]) for extent in extents),
        histogram=histogram,
        mass=mass,
        weighted=weighted,
    )
    return _statistics(distribution, nf4.total, int8.total)


def _statistics(of: Distribution, nf4_square: float, int8_square: float) -> WeightStatistics:
    variance = of.second / of.numel
    softmax = softmax_nats(of.mass, of.weighted)
    norm_square = of.second + of.numel * of.mean * of.mean
    return WeightStatistics(
        numel=of.numel,
        minimum=of.minimum,
        maximum=of.maximum,
        mean=of.mean,
        variance=variance,
        kurtosis=of.fourth / of.numel / variance**2 if variance**2 > 0 else 0.0,
        sparsity=of.zeros / of.numel,
        histogram_entropy=shannon_bits(of.histogram),
        softmax_entropy=softmax,
        centred_softmax_entropy=softmax - math.log(of.numel),
        nf4_error=math.sqrt(nf4_square / norm_square) if norm_square > 0 else 0.0,
        int8_error=math.sqrt(int8_square / norm_square) if norm_square > 0 else 0.0,
    )
