"""Where one tensor lies on disk, and how to look at its bytes."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor."""

    name: str
    dtype: str
    """safetensors spelling (``BF16``, ``F8_E4M3``), or the GGUF type (``Q8_0``)."""
    shape: tuple[int, ...]
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


def map_bytes(info: TensorInfo) -> NDArray[np.uint8]:
    """Bytes of a tensor, ``[nbytes]`` uint8, mapped copy-on-write and unmapped with the array."""
    import numpy as np

    if not info.nbytes:
        return np.empty(0, np.uint8)
    start = info.offset - info.offset % mmap.ALLOCATIONGRANULARITY
    length = info.offset + info.nbytes - start
    with info.file.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=start)
    return np.frombuffer(mapped, np.uint8, count=info.nbytes, offset=info.offset - start)
