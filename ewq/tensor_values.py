"""Stored bytes as numbers: torch tensors for loading, flat NumPy arrays for counting."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from ewq.errors import CheckpointError
from ewq.tensor_info import TensorInfo, map_bytes

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
NUMPY_NAMES = {"F64": "float64", "F32": "float32", "F16": "uint16", "BF16": "uint16"}
"""How values are seen for counting: 16-bit floats as their bit patterns."""


def as_torch(info: TensorInfo) -> torch.Tensor:
    """The tensor in its stored dtype and shape, memory-mapped; GGUF blocks become float32.

    Raises:
        CheckpointError: torch has no such dtype.
    """
    import torch

    if info.packed:
        return torch.from_numpy(_unpacked(info))
    dtype = getattr(torch, TORCH_NAMES.get(info.dtype, ""), None)
    if dtype is None:
        raise CheckpointError(f"{info.name} has dtype {info.dtype}, which torch does not have")
    if not info.nbytes:
        return torch.empty(info.shape, dtype=dtype)
    return torch.frombuffer(map_bytes(info), dtype=dtype).reshape(info.shape)


def as_flat(info: TensorInfo, scale: TensorInfo | None = None) -> NDArray[np.generic]:
    """Values in stored order: uint16 patterns of 16-bit floats, else float32 or float64.

    FP8 is multiplied by its ``scale`` tensor where there is one.

    Raises:
        CheckpointError: values of this dtype are not weights.
    """
    if info.packed:
        return _unpacked(info).reshape(-1)
    if info.dtype in NUMPY_NAMES:
        return map_bytes(info).view(NUMPY_NAMES[info.dtype])
    if info.dtype.startswith("F8_E") and info.dtype != "F8_E8M0":
        return _from_fp8(info, scale)
    raise CheckpointError(
        f"{info.name} has dtype {info.dtype}; ewq plans from floating-point weights, "
        "so give the model it was quantized from"
    )


def _unpacked(info: TensorInfo) -> NDArray[np.float32]:
    from ewq.gguf_file import dequantized

    return dequantized(info)


@cache
def _fp8_table(dtype: str) -> NDArray[np.float32]:
    """Value of each of the 256 patterns, ``[256]`` float32."""
    import numpy as np
    import torch

    patterns = torch.from_numpy(np.arange(256, dtype=np.uint8))
    return patterns.view(getattr(torch, TORCH_NAMES[dtype])).float().numpy()


def _from_fp8(info: TensorInfo, scale: TensorInfo | None) -> NDArray[np.float32]:
    """Values of an FP8 tensor; ``scale`` is one number, one per row, or one per tile."""
    import numpy as np

    values = _fp8_table(info.dtype)[map_bytes(info)].reshape(info.shape)
    if scale is not None:
        factors = as_torch(scale).float().numpy()
        if factors.ndim < 2:
            factors = factors.reshape(-1, *[1] * (values.ndim - 1))
        for axis in (-2, -1):
            tile = -(-values.shape[axis] // factors.shape[axis])
            if factors.shape[axis] > 1:
                factors = np.repeat(factors, tile, axis=axis)
                factors = factors.take(range(values.shape[axis]), axis=axis)
        values *= factors
    return values.reshape(-1)
