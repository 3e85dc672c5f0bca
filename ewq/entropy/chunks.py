"""A weight's values in pieces that fit the processor's cache, whole output rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ewq.entropy.kernels import NF4_BLOCK

CHUNK_VALUES = 32 * 1024


@dataclass(frozen=True)
class Piece:
    """One stored tensor, flat, in the order in which it will be quantized."""

    values: NDArray[np.generic]
    """uint16 bit patterns, float32 or float64; ``[numel]``."""
    in_features: int


def chunk_length(in_features: int) -> int:
    """Values in a chunk: whole rows and whole NF4 blocks, about ``CHUNK_VALUES``."""
    step = math.lcm(in_features, NF4_BLOCK)
    return step * max(1, CHUNK_VALUES // step)


def chunks(piece: Piece) -> Iterator[NDArray[np.generic]]:
    """Consecutive slices of whole rows and whole NF4 blocks (the last one may be shorter)."""
    step = chunk_length(piece.in_features)
    for start in range(0, piece.values.size, step):
        yield piece.values[start : start + step]
