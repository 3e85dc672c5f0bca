"""The header of a safetensors file: eight bytes of length, then JSON.

Format: https://github.com/huggingface/safetensors#format. Reading it here
gives byte offsets, so that tensors can be mapped and sampled without torch.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ewq.checkpoint.tensor_info import TensorInfo
from ewq.errors import CheckpointError

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
LONGEST_HEADER_BYTES = 100_000_000
"""The limit of the reference implementation."""


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Names, dtypes, shapes and byte ranges of a safetensors file.

    Raises:
        CheckpointError: truncated, damaged, or a dtype that is not known here.
    """
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(LONGEST_HEADER_BYTES, size_bytes - 8):
                raise CheckpointError(f"{path} is truncated or not safetensors; download it again")
            header = json.loads(file.read(length))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is not a JSON object; download it again")
    start = 8 + length
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    tensors = {name: _tensor(path, start, name, entry) for name, entry in entries.items()}
    end = max((info.offset + info.nbytes for info in tensors.values()), default=start)
    if end > size_bytes:
        raise CheckpointError(
            f"{path} is truncated: it holds {size_bytes} bytes of {end}; download it again"
        )
    return tensors


def _tensor(path: Path, start: int, name: str, entry: Any) -> TensorInfo:  # noqa: ANN401
    try:
        dtype, shape = entry["dtype"], tuple(int(size) for size in entry["shape"])
        first, last = (int(offset) for offset in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the header entry of {name} is damaged") from error
    item_bytes = ITEM_BYTES.get(dtype)
    if item_bytes is None:
        raise CheckpointError(f"{path}: {name} has dtype {dtype}; known: {', '.join(ITEM_BYTES)}")
    if last - first != item_bytes * math.prod(shape) or first < 0:
        raise CheckpointError(f"{path}: the size of {name} does not follow from its shape")
    return TensorInfo(name, dtype, shape, last - first, path, start + first)
