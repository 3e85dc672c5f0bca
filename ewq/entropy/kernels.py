"""Compiled loops. All release the interpreter lock; compiled code is cached on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]
P = ParamSpec("P")
T = TypeVar("T")

NF4_LEVELS = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    dtype=np.float32,
)
"""The NF4 code (QLoRA, arXiv 2305.14314, appendix E), as bitsandbytes stores it."""
NF4_BLOCK = 64
PATTERNS = 65536
TABLES = 2
TINY = np.float32(2.0**-120)
"""Blocks without a larger value are taken as stored exactly: their reciprocal is no float32."""
N1, N2, N3, N4, N5, N6 = -NF4_LEVELS[6:0:-1]
P1, P2, P3, P4, P5, P6, P7 = NF4_LEVELS[8:15]
ONE = np.float32(1.0)


def compiled(*, fastmath: bool = False) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Compile for this processor without the interpreter lock.

    Compiled code is kept on disk between runs where any place for it can be written.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        try:
            made = njit(nogil=True, cache=True, fastmath=fastmath)(function)
        except RuntimeError:  # numba: "cannot cache function: no locator available"
            made = njit(nogil=True, fastmath=fastmath)(function)
        return cast(Callable[P, T], made)

    return decorate


@compiled()
def count_patterns(bits: Array, counts: Array) -> None:
    """Add the occurrences of each 16-bit pattern in ``bits`` to ``counts[2, 65536]``.

    One load fetches four patterns. Two tables, because neighbouring equal
    values would wait for each other's store; more would not fit the first cache.
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


@compiled()
def widen_bfloat16(bits: Array, out: Array) -> None:
    """Bit patterns of bfloat16 to float32: the upper half of the word."""
    words = out.view(np.uint32)
    for position in range(bits.size):
        words[position] = np.uint32(bits[position]) << np.uint32(16)


@compiled()
def widen_float16(bits: Array, out: Array) -> None:
    """Bit patterns of float16 to float32, subnormals included.

    Exponent and fraction are moved into place and the difference of the
    exponent biases (2**112) is multiplied in, which also normalises subnormals.
    """
    words = out.view(np.uint32)
    for position in range(bits.size):
        words[position] = (np.uint32(bits[position]) & np.uint32(0x7FFF)) << np.uint32(13)
    for position in range(bits.size):
        out[position] *= np.float32(2.0**112)
    for position in range(bits.size):
        words[position] |= (np.uint32(bits[position]) & np.uint32(0x8000)) << np.uint32(16)


@compiled()
def _maxima(values: Array, width: int) -> Array:
    """Largest magnitude of each run of ``width`` values, ``[runs]`` float32.

    Magnitudes of floats are ordered as their bit patterns are, and a maximum of
    integers is several times faster than one of floats, which must mind NaN.
    """
    words = values.view(np.uint32)
    runs = (values.size + width - 1) // width
    tops = np.empty(runs, np.uint32)
    for index in range(runs):
        run = words[index * width : (index + 1) * width]
        top = np.uint32(0)
        for position in range(run.size):
            top = max(top, run[position] & np.uint32(0x7FFFFFFF))
        tops[index] = top
    return tops.view(np.float32)


@compiled(fastmath=True)
def _nf4_block(values: Array, scale: np.float32) -> np.float32:
    """Squared distance to the nearest level, in units of the absolute maximum.

    The levels of either sign share 0 and 1, so nine distances are enough.
    """
    total = np.float32(0.0)
    for position in range(values.size):
        x = values[position] * scale
        size = abs(x)
        positive = x > 0
        near = min(size, abs(ONE - size))
        near = min(near, abs(size - (P1 if positive else N1)))
        near = min(near, abs(size - (P2 if positive else N2)))
        near = min(near, abs(size - (P3 if positive else N3)))
        near = min(near, abs(size - (P4 if positive else N4)))
        near = min(near, abs(size - (P5 if positive else N5)))
        near = min(near, abs(size - (P6 if positive else N6)))
        near = min(near, abs(size - (P7 if positive else N6)))
        total += near * near
    return total


@compiled()
def nf4_square_error(values: Array) -> float:
    """``sum (w - NF4(w))**2`` of float32 ``values``, in blocks of 64 from the first."""
    tops = _maxima(values, NF4_BLOCK)
    total = 0.0
    for index in range(tops.size):
        top = tops[index]
        if top > TINY:
            block = values[index * NF4_BLOCK : (index + 1) * NF4_BLOCK]
            square = np.float64(_nf4_block(block, ONE / top))
            total += square * np.float64(top) * np.float64(top)
    return total


@compiled(fastmath=True)
def _int8_row(row: Array, scale: np.float32) -> np.float32:
    total = np.float32(0.0)
    for position in range(row.size):
        x = row[position] * scale
        off = x - np.rint(x)
        total += off * off
    return total


@compiled()
def int8_square_error(values: Array, in_features: int) -> float:
    """``sum (w - int8(w))**2``, one scale ``max|row| / 127`` per row of ``in_features``."""
    tops = _maxima(values, in_features)
    total = 0.0
    for index in range(tops.size):
        top = tops[index]
        if top > TINY:
            row = values[index * in_features : (index + 1) * in_features]
            step = np.float64(top) / 127.0
            total += np.float64(_int8_row(row, np.float32(127.0) / top)) * step * step
    return total


@compiled()
def tally(
    bits: Array, in_features: int, step: int, half: bool, counts: Array
) -> tuple[float, float]:
    """Count the patterns of ``bits`` into ``counts[2, 65536]``; return the squared rounding errors.

    Works through ``step`` values at a time, which stay in the processor's cache
    between counting, widening and rounding. ``half`` says float16, else bfloat16.
    Returns ``(nf4, int8)`` as :func:`nf4_square_error` and :func:`int8_square_error` do.
    """
    buffer = np.empty(min(step, bits.size), np.float32)
    nf4, int8 = 0.0, 0.0
    for start in range(0, bits.size, step):
        chunk = bits[start : start + step]
        wide = buffer[: chunk.size]
        count_patterns(chunk, counts)
        if half:
            widen_float16(chunk, wide)
        else:
            widen_bfloat16(chunk, wide)
        nf4 += nf4_square_error(wide)
        int8 += int8_square_error(wide, in_features)
    return nf4, int8


@compiled()
def extent(values: Array) -> tuple[float, float, float, int, bool]:
    """``(minimum, maximum, sum, zeros, finite)`` of a chunk; the sum is in float64."""
    low, high = values[0], values[0]
    total, zeros, bad = 0.0, 0, 0
    for position in range(values.size):
        x = values[position]
        low = min(low, x)
        high = max(high, x)
        total += np.float64(x)
        zeros += x == 0
        bad += not np.isfinite(x)
    return low, high, total, zeros, bad == 0


@compiled()
def moments(values: Array, mean: float, top: float) -> tuple[float, float, float, float]:
    """Sums of ``d**2``, ``d**4``, ``e**u``, ``u e**u`` with ``d = w - mean``, ``u = w - top``."""
    second, fourth, weight, weighted = 0.0, 0.0, 0.0, 0.0
    for position in range(values.size):
        x = np.float64(values[position])
        square = (x - mean) * (x - mean)
        second += square
        fourth += square * square
        below = x - top
        mass = np.exp(below)
        weight += mass
        weighted += mass * below
    return second, fourth, weight, weighted


@compiled()
def count_bins(values: Array, edges: Array, counts: Array) -> None:
    """Add ``values`` to ``counts[bins]``, in NumPy's bins: only the last one has both edges.

    The estimate of the bin is off by one at most next to an edge; comparing
    with the edges themselves settles it, as NumPy does.
    """
    bins = counts.size
    first = edges[0]
    scale = bins / (np.float64(edges[bins]) - np.float64(first))
    for position in range(values.size):
        x = values[position]
        index = int((np.float64(x) - np.float64(first)) * scale)
        index = min(max(index, 0), bins - 1)
        while index > 0 and x < edges[index]:
            index -= 1
        while index < bins - 1 and x >= edges[index + 1]:
            index += 1
        counts[index] += 1
