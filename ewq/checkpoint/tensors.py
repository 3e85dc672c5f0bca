"""Tensors as they lie on disk: where, of which type, and their bytes and values, memory-mapped."""

from __future__ import annotations

import json
import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ewq.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

DTYPES = {
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
"""safetensors' spelling -> torch's name."""
FLOATS = ("F64", "F32", "F16", "BF16")
LFS_POINTER = b"version https://git-lfs"
DEQUANTIZED_BLOCKS = 4096
"""At once: enough to amortise the call, few enough to stay in the cache."""


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor."""

    name: str
    dtype: str
    """safetensors spelling (``BF16``, ``F8_E4M3``), or the GGUF type (``Q8_0``)."""
    shape: tuple[int, ...]
    """PyTorch's order, output rows first."""
    nbytes: int
    """Bytes as stored."""
    file: Path
    offset: int
    """Of the first byte in ``file``."""
    packed: bool = False
    """Stored as GGUF blocks, which hold scales among the values."""

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def loaded_nbytes(self) -> int:
        """Bytes where it is not quantized: floats are kept in 16 bits, other values as stored."""
        return 2 * self.numel if self.packed or self.dtype in FLOATS else self.nbytes


def map_bytes(info: TensorInfo, first: int = 0, count: int | None = None) -> NDArray[np.uint8]:
    """Bytes ``[first : first + count]`` of a tensor, mapped copy-on-write while the array lives."""
    import numpy as np

    wanted = info.nbytes - first if count is None else count
    if not wanted:
        return np.empty(0, np.uint8)
    offset = info.offset + first
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    try:
        with info.file.open("rb") as file:
            mapped = mmap.mmap(
                file.fileno(), offset + wanted - start, access=mmap.ACCESS_COPY, offset=start
            )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {info.name} from {info.file}: {error}") from error
    return np.frombuffer(mapped, np.uint8, count=wanted, offset=offset - start)


def read_ahead(info: TensorInfo, first: int, count: int) -> None:
    """Ask the system to read bytes that will be needed soon; returns at once."""
    if hasattr(os, "posix_fadvise"):
        with info.file.open("rb") as file:
            os.posix_fadvise(file.fileno(), info.offset + first, count, os.POSIX_FADV_WILLNEED)


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype of a safetensors spelling, if this torch has it."""
    import torch

    found = getattr(torch, DTYPES.get(name, name), None)
    if not isinstance(found, torch.dtype):
        raise CheckpointError(f"this torch has no dtype for {name}; update torch")
    return found


def dequantized(data: NDArray[np.uint8], type_name: str) -> NDArray[np.float32]:
    """Values of whole rows of GGUF blocks, ``[values]`` float32."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType[type_name]
    step_bytes = DEQUANTIZED_BLOCKS * GGML_QUANT_SIZES[kind][1]
    try:
        # One long row at a time: gguf takes rows in groups of 16, which is slow for short ones.
        parts = [
            dequantize(data[start : start + step_bytes].reshape(1, -1), kind).reshape(-1)
            for start in range(0, data.size, step_bytes)
        ]
    except NotImplementedError as error:
        raise CheckpointError(f"GGUF type {type_name} cannot be dequantised here") from error
    return np.concatenate(parts, dtype=np.float32)


def as_torch(info: TensorInfo) -> torch.Tensor:
    """The tensor in its stored dtype and shape, memory-mapped; GGUF blocks become float32."""
    import torch

    if info.packed:
        return torch.from_numpy(dequantized(map_bytes(info), info.dtype)).reshape(info.shape)
    return torch.from_numpy(map_bytes(info)).view(torch_dtype(info.dtype)).reshape(info.shape)


def is_pointer(path: Path) -> bool:
    """Whether git left a pointer in place of the file's content."""
    try:
        with path.open("rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def read_safetensors(path: Path) -> dict[str, TensorInfo]:
    """Names, dtypes, shapes and byte ranges of a safetensors file, from its header.

    The library checks it, but does not tell where tensors lie. Eight bytes of length, then JSON:
    https://github.com/huggingface/safetensors#format.
    """
    from safetensors import SafetensorError, safe_open

    if is_pointer(path):
        raise CheckpointError(f"{path} is a Git LFS pointer; download the file itself")
    try:
        with safe_open(path, framework="np"), path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    except SafetensorError as error:
        why = str(error).removeprefix("Error while deserializing header: ")
        raise CheckpointError(
            f"{path} is truncated or not safetensors ({why}); download it again"
        ) from error
    header.pop("__metadata__", None)
    return {name: _tensor(path, start, name, **entry) for name, entry in header.items()}


def _tensor(
    path: Path, start: int, name: str, dtype: str, shape: list[int], data_offsets: list[int]
) -> TensorInfo:
    first, last = data_offsets
    return TensorInfo(name, dtype, tuple(shape), last - first, path, start + first)
