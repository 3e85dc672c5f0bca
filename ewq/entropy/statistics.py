"""Exact statistics of one weight, from parts of its values in stored order.

Memory follows the size of a part and not of the weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ewq.entropy import WeightStatistics

if TYPE_CHECKING:
    import torch

P = ParamSpec("P")
T = TypeVar("T")
Array = NDArray[Any]
PATTERNS = 65536
HISTOGRAM_BINS = 256
CHUNK_VALUES = 32 * 1024
"""Fit the processor's cache."""

Values = NDArray[np.generic]
"""Flat: uint16 bit patterns of 16-bit floats, else float32 or float64."""
Counted = tuple[NDArray[Any], NDArray[np.int64]]
"""Floats, and how often each of them occurs."""


def compiled(function: Callable[P, T]) -> Callable[P, T]:
    """Compile for this processor without the interpreter lock.

    Compiled code is kept on disk between runs where any place for it can be written.
    """
    try:
        made = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba: "cannot cache function: no locator available"
        made = njit(nogil=True)(function)
    return cast(Callable[P, T], made)


@compiled
def add_patterns(bits: Array, counts: Array) -> None:
    """Add the occurrences of each 16-bit pattern in ``bits`` to ``counts[2, 65536]``.

    Two tables, because neighbouring equal values would wait for each other's store.
    """
    whole = bits.size - bits.size % 4
    words = bits[:whole].view(np.uint64)
    low = np.uint64(0xFFFF)
    for position in range(words.size):
        word = words[position]
        counts[0, word & low] += np.uint32(1)
        counts[1, (word >> np.uint64(16)) & low] += np.uint32(1)
        counts[0, (word >> np.uint64(32)) & low] += np.uint32(1)
        counts[1, word >> np.uint64(48)] += np.uint32(1)
    for position in range(whole, bits.size):
        counts[0, bits[position]] += np.uint32(1)


@compiled
def _counted_in_bins(values: Array, edges: Array) -> Array:
    """How many values lie in each of NumPy's bins: only the last one has both edges.

    Next to an edge the estimate may be off by one, which the edges themselves settle.
    """
    bins = edges.size - 1
    counts = np.zeros(bins, np.int64)
    first = np.float64(edges[0])
    scale = bins / (np.float64(edges[bins]) - first)
    for position in range(values.size):
        x = values[position]
        index = int((np.float64(x) - first) * scale)
        index = min(max(index, 0), bins - 1)
        while index > 0 and x < edges[index]:
            index -= 1
        while index < bins - 1 and x >= edges[index + 1]:
            index += 1
        counts[index] += 1
    return counts


class UnmeasurableError(ValueError):
    """Values of which a statistic cannot be taken; the message completes a sentence."""


class NotFiniteError(UnmeasurableError):
    """The weight holds NaN or infinity."""


@cache
def values_of_patterns(dtype: str) -> NDArray[np.float32]:
    """The value of each 16-bit pattern, ``[65536]`` float32, for ``BF16`` or ``F16``."""
    bits = np.arange(PATTERNS, dtype=np.uint16)
    if dtype == "F16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def measure_patterns(
    parts: Iterable[Values], dtype: str, device: str | None = None
) -> WeightStatistics:
    """Statistics of a 16-bit weight (``BF16`` or ``F16``), given as bit patterns, in one pass.

    There are only 65,536 values: how often each occurs tells everything exactly. A NotFiniteError
    of NaN or infinity.
    """
    counts = _counted(parts) if device is None else _counted_on(device, parts)
    present = np.flatnonzero(counts)
    found = values_of_patterns(dtype)[present], counts[present]
    return _measure(lambda: [found], lambda v, n, edges: np.histogram(v, edges, weights=n)[0])


def _counted(parts: Iterable[Values]) -> NDArray[np.int64]:
    """How often each pattern occurs, ``[65536]``."""
    total, counts = np.zeros(PATTERNS, np.int64), np.zeros((2, PATTERNS), np.uint32)
    for part in parts:
        counts[:] = 0
        add_patterns(part, counts)
        total += counts.sum(0, dtype=np.int64)
    return total


def _counted_on(device: str, parts: Iterable[Values]) -> NDArray[np.int64]:
    import torch

    total = torch.zeros(PATTERNS, dtype=torch.int64, device=device)
    for part in parts:
        total += count_patterns(torch.from_numpy(part.view(np.int16)).to(device))
    return np.asarray(total.cpu().numpy())


def count_patterns(bits: torch.Tensor) -> torch.Tensor:
    """How often each pattern occurs in ``bits`` (int16, flat), ``[65536]`` int64 on its device."""
    import torch

    return torch.bincount(bits.int() & (PATTERNS - 1), minlength=PATTERNS)


def measure_floats(parts: Callable[[], Iterable[Values]], in_features: int) -> WeightStatistics:
    """Statistics of a float32 or float64 weight in two passes over ``parts()``.

    A NotFiniteError of NaN or infinity, an UnmeasurableError of a float64 value beyond float32 or
    of no 256 bins between the values.
    """
    # In whole rows: sums, rounded chunk by chunk, then repeat whatever the parts.
    length = in_features * max(1, CHUNK_VALUES // in_features)

    def counted() -> Iterator[Counted]:
        for chunk in chunks(parts(), length):
            yield chunk, np.broadcast_to(np.int64(1), chunk.shape)

    return _measure(counted, lambda chunk, _, edges: _counted_in_bins(chunk, edges))


def chunks(parts: Iterable[Values], length: int) -> Iterator[Values]:
    """Parts in pieces of at most ``length`` values."""
    for part in parts:
        for start in range(0, part.size, length):
            yield part[start : start + length]


def _measure(
    parts: Callable[[], Iterable[Counted]], bins: Callable[..., NDArray[np.int64]]
) -> WeightStatistics:
    with np.errstate(invalid="ignore"):
        first = [
            (values.min(), values.max(), (values.astype(np.float64) * counts).sum(), counts.sum())
            for values, counts in parts()
        ]
    lows, highs, totals, numels = zip(*first, strict=True)
    if not np.isfinite([lows, highs]).all():
        raise NotFiniteError
    low, high, numel = min(lows), max(highs), int(sum(numels))
    if max(-float(low), float(high)) > float(np.finfo(np.float32).max):
        raise UnmeasurableError("has values beyond float32, which no quantized format can hold")
    mean = math.fsum(totals) / numel
    # One value alone is always in one bin; around a large one NumPy has none.
    edges = None if low == high else _bin_edges(low, high)
    histogram = np.zeros(HISTOGRAM_BINS, np.int64)
    sums = []
    for values, counts in parts():
        sums.append(_sums(values.astype(np.float64), counts, mean, float(high)))
        if edges is not None:
            histogram += bins(values, counts, edges)
    second, fourth, mass, weighted = map(math.fsum, zip(*sums, strict=True))
    variance, counted = second / numel, histogram[histogram > 0]
    shares = counted / counted.sum()
    return WeightStatistics(
        numel=numel,
        minimum=float(low),
        maximum=float(high),
        mean=mean,
        variance=variance,
        kurtosis=fourth / numel / variance**2 if variance**2 > 0 else 0.0,
        histogram_entropy=float(-np.sum(shares * np.log2(shares))) + 0.0,
        # ln S - T / S with S = sum e**u, T = sum u e**u, u = w - max.
        softmax_entropy=float(np.log(mass) - weighted / mass),
    )


def _sums(
    wide: NDArray[np.float64], counts: NDArray[np.int64], mean: float, high: float
) -> list[float]:
    """Of ``d**2``, ``d**4``, ``e**u`` and ``u e**u`` with ``d = w - mean`` and ``u = w - high``."""
    square, below = (wide - mean) ** 2, wide - high
    mass = np.exp(below) * counts
    terms = (square * counts, square * square * counts, mass, mass * below)
    return [float(np.sum(term)) for term in terms]


def _bin_edges(low: Any, high: Any) -> NDArray[np.floating[Any]]:
    """NumPy's 257 edges between the extremes, in their type.

    Where it has no 256 bins between them (neighbouring or denormal values, a range beyond its
    largest number) they are made in float64.
    """
    for kind in (low.dtype, np.dtype(np.float64)):
        ends = np.array([low, high], kind)
        with np.errstate(over="ignore"):
            possible = np.isfinite(np.ptp(ends))
        with suppress(ValueError):  # NumPy: "Too many bins for data range"
            if possible:
                return np.histogram_bin_edges(ends, HISTOGRAM_BINS)
    raise UnmeasurableError("has values that float64 cannot put into 256 bins")
