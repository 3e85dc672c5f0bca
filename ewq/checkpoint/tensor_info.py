"""Where one tensor lies on disk, and how to look at its bytes."""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ewq.errors import CheckpointError

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

    @property
    def loaded_nbytes(self) -> int:
        """Bytes once loaded and not quantized: as stored, but GGUF blocks become 16-bit floats."""
        return 2 * self.numel if self.packed else self.nbytes


def map_bytes(info: TensorInfo, first: int = 0, count: int | None = None) -> NDArray[np.uint8]:
    """Bytes ``[first : first + count]`` of a tensor, mapped copy-on-write.

    The mapping ends with the array, and with it the memory it occupies.
    """
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
