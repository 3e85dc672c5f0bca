"""A stored tensor as a torch tensor, in its stored dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ewq.checkpoint.tensor_info import TensorInfo, map_bytes
from ewq.errors import CheckpointError

if TYPE_CHECKING:
    import torch

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


def as_torch(info: TensorInfo) -> torch.Tensor:
    """The tensor in its stored dtype and shape, memory-mapped; GGUF blocks become float32.

    Raises:
        CheckpointError: torch has no such dtype.
    """
    import torch

    if info.packed:
        from ewq.checkpoint.gguf_file import dequantized

        return torch.from_numpy(dequantized(map_bytes(info), info.dtype)).reshape(info.shape)
    dtype = getattr(torch, TORCH_NAMES.get(info.dtype, ""), None)
    if dtype is None:
        raise CheckpointError(f"{info.name} has dtype {info.dtype}, which torch does not have")
    if not info.nbytes:
        return torch.empty(info.shape, dtype=dtype)
    return torch.frombuffer(map_bytes(info), dtype=dtype).reshape(info.shape)
