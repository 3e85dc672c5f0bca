"""Compiled loops. All release the interpreter lock; compiled code is cached on disk."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]
P = ParamSpec("P")
T = TypeVar("T")

TABLES = 2


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
def count_patterns(bits: Array, counts: Array) -> None:
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
def count_bins(values: Array, edges: Array) -> Array:
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
