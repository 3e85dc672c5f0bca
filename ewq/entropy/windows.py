"""A stored tensor as flat numbers, a window of rows at a time.

Windows bound memory by the number of workers, not by the size of tensors:
each is mapped (or dequantised), measured and let go while the system reads
the next one ahead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ewq.checkpoint.tensors import (
    TensorInfo,
    as_torch,
    dequantized,
    map_bytes,
    read_ahead,
    torch_dtype,
)
from ewq.errors import CheckpointError

WINDOW_BYTES = 16 * 2**20
ROW_STEP = 64
"""Windows start at multiples of this, so that NF4's blocks of 64 never straddle two."""
SEEN_AS = {"F64": np.float64, "F32": np.float32, "F16": np.uint16, "BF16": np.uint16}
"""16-bit floats are looked at as bit patterns."""
FP8 = ("F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class Scaling:
    """FP8 scales of one weight and the tile that shares one."""

    factors: TensorInfo
    tile: tuple[int, int]
    """Rows and columns, from the checkpoint's ``weight_block_size``."""


def windows(info: TensorInfo, scaling: Scaling | None = None) -> Iterator[NDArray[np.generic]]:
    """Values in stored order: uint16 patterns of 16-bit floats, else float32 or float64.

    Raises:
        CheckpointError: values of this dtype are not floating-point weights.
    """
    if not info.packed and info.dtype not in SEEN_AS and info.dtype not in FP8:
        raise CheckpointError(
            f"{info.name} is stored as {info.dtype}, not as floating point; "
            "give the model it was quantized from"
        )
    table = _fp8_factors(info, scaling) if scaling else None
    for first, count in _row_ranges(info):
        rows = info.numel // info.shape[-1]
        row_bytes = info.nbytes // rows
        read_ahead(info, (first + count) * row_bytes, count * row_bytes)
        data = map_bytes(info, first * row_bytes, count * row_bytes)
        yield _values(data, info, first, table)


def _row_ranges(info: TensorInfo) -> Iterator[tuple[int, int]]:
    """``(first row, rows)`` of each window."""
    rows = info.numel // info.shape[-1]
    as_floats = info.packed or info.dtype in FP8
    held_bytes = 4 * info.numel if as_floats else info.nbytes
    step = max(1, WINDOW_BYTES // max(1, held_bytes // rows) // ROW_STEP) * ROW_STEP
    for first in range(0, rows, step):
        yield first, min(step, rows - first)


def _values(
    data: NDArray[np.uint8], info: TensorInfo, first_row: int, factors: Factors | None
) -> NDArray[np.generic]:
    if info.packed:
        return dequantized(data, info.dtype).reshape(-1)
    if info.dtype in SEEN_AS:
        return data.view(SEEN_AS[info.dtype])
    values = _fp8_table(info.dtype)[data]
    if factors is not None:
        values = factors.applied(values.reshape(-1, info.shape[-1]), first_row).reshape(-1)
    return values


@cache
def _fp8_table(dtype: str) -> NDArray[np.float32]:
    """Value of each of the 256 patterns, ``[256]`` float32."""
    import torch

    patterns = torch.from_numpy(np.arange(256, dtype=np.uint8))
    table: NDArray[np.float32] = patterns.view(torch_dtype(dtype)).float().numpy()
    return table


@dataclass(frozen=True)
class Factors:
    """FP8 scales as a table, ``[tiles down, tiles across]``."""

    table: NDArray[np.float32]
    tile: tuple[int, int]

    def applied(self, values: NDArray[np.float32], first_row: int) -> NDArray[np.float32]:
        """``values[rows, columns]``, whose first row is ``first_row`` of the tensor, scaled."""
        down = (first_row + np.arange(values.shape[0])) // self.tile[0]
        across = np.arange(values.shape[1]) // self.tile[1]
        scaled: NDArray[np.float32] = values * self.table[down][:, across]
        return scaled


def _fp8_factors(info: TensorInfo, scaling: Scaling) -> Factors:
    table = as_torch(scaling.factors).float().numpy()
    table = table.reshape(-1, table.shape[-1] if table.ndim > 1 else 1)
    rows = info.numel // info.shape[-1]
    tile = (
        _side(rows, table.shape[0], scaling.tile[0]),
        _side(info.shape[-1], table.shape[1], scaling.tile[1]),
    )
    if (-(-rows // tile[0]), -(-info.shape[-1] // tile[1])) != table.shape:
        raise CheckpointError(
            f"{scaling.factors.name} has shape {scaling.factors.shape}, which does not fit "
            f"{info.name} {info.shape} in tiles of {scaling.tile}"
        )
    return Factors(table, tile)


def _side(size: int, factors: int, tile: int) -> int:
    """Values along one side that share a factor: all of them, one, or a tile."""
    return {1: size, size: 1}.get(factors, tile)
