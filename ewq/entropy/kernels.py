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
SIGN32 = np.uint32(0x7FFFFFFF)
"""Leaves the magnitude of a float32 pattern."""
TINY = np.float32(2.0**-120)
"""Blocks without a larger value are taken as stored exactly: their reciprocal is no float32."""
UNIT = np.int16(2**15 - 1)
"""A block's largest magnitude, in the fixed point in which distances to levels are taken."""
N1, N2, N3, N4, N5, N6 = np.rint(-NF4_LEVELS[6:0:-1] * UNIT).astype(np.int16)
P1, P2, P3, P4, P5, P6, P7 = np.rint(NF4_LEVELS[8:15] * UNIT).astype(np.int16)


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
def _maxima(patterns: Array, magnitude: np.uint32, tops: Array) -> None:
    """Largest magnitude of each NF4 block of ``patterns[blocks, 64]``, as a pattern.

    Magnitudes of floats are ordered as their bit patterns are, and a maximum of
    integers is several times faster than one of floats, which must mind NaN.
    The cast keeps 32 bits, of which twice as many fit a register as of numba's 64.
    """
    for index in range(patterns.shape[0]):
        top = np.uint32(0)
        for position in range(NF4_BLOCK):
            value = np.uint32(patterns[index, position] & magnitude)
            top = value if value > top else top
        tops[index] = top


@compiled(fastmath=True)
def _to_fixed_point(blocks: Array, tops: Array, out: Array) -> None:
    """Values over their block's largest magnitude, as int16 with ``UNIT`` for 1."""
    for index in range(blocks.shape[0]):
        scale = np.float32(UNIT) / tops[index] if tops[index] > TINY else np.float32(0.0)
        for position in range(NF4_BLOCK):
            out[index, position] = np.int16(np.rint(blocks[index, position] * scale))


@compiled()
def _nearer(size: np.int16, level: np.int16, near: np.int16) -> np.int16:
    """The smaller of ``near`` and the distance to ``level``; casts keep sixteen to a register."""
    off = np.int16(size - level)
    off = np.int16(-off) if off < 0 else off
    return off if off < near else near


@compiled()
def _to_nf4_distance(values: Array) -> None:
    """Replace each value by its distance to the nearest NF4 level, in fixed point.

    The levels of either sign share 0 and 1, so nine distances are enough.
    """
    for position in range(values.size):
        x = values[position]
        positive = x > 0
        size = x if positive else np.int16(-x)
        near = _nearer(size, UNIT, size)
        near = _nearer(size, P1 if positive else N1, near)
        near = _nearer(size, P2 if positive else N2, near)
        near = _nearer(size, P3 if positive else N3, near)
        near = _nearer(size, P4 if positive else N4, near)
        near = _nearer(size, P5 if positive else N5, near)
        near = _nearer(size, P6 if positive else N6, near)
        near = _nearer(size, P7 if positive else N6, near)
        values[position] = near


@compiled()
def _square_sum(values: Array) -> np.int32:
    """Of 64 distances in fixed point: the widest gap between levels keeps it below 2**31."""
    total = np.int32(0)
    for position in range(values.size):
        value = np.int32(values[position])
        total = np.int32(total + np.int32(value * value))
    return total


@compiled()
def _nf4_square_error(blocks: Array, tops: Array, fixed: Array) -> float:
    """``sum (w - NF4(w))**2`` of ``blocks[n, 64]``; ``fixed`` is room for as many int16."""
    _to_fixed_point(blocks, tops, fixed)
    _to_nf4_distance(fixed.reshape(-1))
    total = 0.0
    for index in range(tops.size):
        top = np.float64(tops[index])
        total += np.float64(_square_sum(fixed[index])) * (top * top)
    return total / (np.float64(UNIT) * np.float64(UNIT))


@compiled(fastmath=True)
def _int8_row(row: Array, scale: np.float32) -> np.float32:
    total = np.float32(0.0)
    for position in range(row.size):
        x = row[position] * scale
        off = x - np.rint(x)
        total += off * off
    return total


@compiled()
def _largest(row: Array) -> np.float32:
    words = row.view(np.uint32)
    top = np.zeros(1, np.uint32)
    for position in range(words.size):
        top[0] = max(top[0], words[position] & SIGN32)
    return np.float32(top.view(np.float32)[0])


@compiled()
def _int8_square_error(values: Array, in_features: int, tops: Array) -> float:
    """``sum (w - int8(w))**2``, one scale ``max|row| / 127`` per row of ``in_features``.

    ``tops`` holds the largest magnitude of each NF4 block, which spares another
    look at rows made of whole blocks.
    """
    total = 0.0
    blocks = in_features // NF4_BLOCK if in_features % NF4_BLOCK == 0 else 0
    for index in range(values.size // in_features):
        row = values[index * in_features : (index + 1) * in_features]
        top = tops[index * blocks : (index + 1) * blocks].max() if blocks else _largest(row)
        if top > TINY:
            step = np.float64(top) / 127.0
            total += np.float64(_int8_row(row, np.float32(127.0) / top)) * step * step
    return total


@compiled()
def square_errors(values: Array, in_features: int) -> tuple[float, float]:
    """Squared errors that NF4 and int8 rounding cause in float32 ``values``: ``(nf4, int8)``.

    NF4 in blocks of 64 from the first value, int8 in rows of ``in_features``.
    Distances to NF4's levels are taken in 15-bit fixed point, twice as many at
    a time as in float32, which moves their sum by about one part in 100,000.
    """
    whole = values.size - values.size % NF4_BLOCK
    blocks = values[:whole].reshape((-1, NF4_BLOCK))
    tops = np.empty(blocks.shape[0], np.float32)
    fixed = np.empty(blocks.shape, np.int16)
    _maxima(blocks.view(np.uint32), SIGN32, tops.view(np.uint32))
    nf4 = _nf4_square_error(blocks, tops, fixed)
    if whole < values.size:
        last = np.zeros((1, NF4_BLOCK), np.float32)
        last[0, : values.size - whole] = values[whole:]
        top = np.empty(1, np.float32)
        _maxima(last.view(np.uint32), SIGN32, top.view(np.uint32))
        nf4 += _nf4_square_error(last, top, np.empty((1, NF4_BLOCK), np.int16))
    return nf4, _int8_square_error(values, in_features, tops)


@compiled()
def tally(
    bits: Array, in_features: int, step: int, half: bool, counts: Array
) -> tuple[float, float]:
    """Count the patterns of ``bits`` into ``counts[2, 65536]``; return the squared rounding errors.

    Works through ``step`` values at a time, which stay in the processor's cache
    between counting, widening and rounding. ``half`` says float16, else bfloat16.
    Returns ``(nf4, int8)`` as :func:`square_errors` does.
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
        errors = square_errors(wide, in_features)
        nf4 += errors[0]
        int8 += errors[1]
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
