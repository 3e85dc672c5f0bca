"""Give back memory while a checkpoint streams through: read pages, and freed heap.

A tensor that was quantized is done with, but its pages stay resident as part
of the mapped file, and the working copies stay in the allocator. On Linux
both can be handed back as loading goes on, so that the peak follows the
finished model and not the checkpoint. Elsewhere nothing is done.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

MADV_DONTNEED = 4
EVERY_BYTES = 64 * 1024 * 1024
"""Source bytes between two rounds; a round costs milliseconds."""


@dataclass(frozen=True)
class Mapping:
    """One mapped stretch of a file in this process."""

    start: int
    nbytes: int
    path: str
    dirty_bytes: int
    """Written to since it was mapped; dropping such pages would lose the change."""


def parse_smaps(text: str) -> Iterator[Mapping]:
    """The file mappings in the text of ``/proc/self/smaps``."""
    span, path = "", ""
    for line in text.splitlines():
        first, _, rest = line.partition(" ")
        if not first.endswith(":"):
            span, path = first, " ".join(rest.split()[4:])
        elif first == "Private_Dirty:" and path.startswith("/"):
            low, _, high = span.partition("-")
            start = int(low, 16)
            yield Mapping(start, int(high, 16) - start, path, int(rest.split()[0]) * 1024)


class Housekeeper:
    """Counts what was quantized and tidies up from time to time."""

    def __init__(self, files: Collection[str]) -> None:
        self._files = {str(Path(file).resolve()) for file in files}
        self._libc = ctypes.CDLL(None) if sys.platform == "linux" else None
        self._since_bytes = 0

    def used(self, nbytes: int) -> None:
        """``nbytes`` more of the checkpoint were quantized and are not needed again."""
        self._since_bytes += nbytes
        if self._since_bytes >= EVERY_BYTES:
            self.tidy()

    def tidy(self) -> None:
        """Drop clean pages of the checkpoint, which come back from the page cache if needed."""
        self._since_bytes = 0
        if self._libc is None:
            return
        for mapping in parse_smaps(Path("/proc/self/smaps").read_text()):
            if mapping.path in self._files and mapping.dirty_bytes == 0:
                start, length = ctypes.c_void_p(mapping.start), ctypes.c_size_t(mapping.nbytes)
                self._libc.madvise(start, length, MADV_DONTNEED)
        if hasattr(self._libc, "malloc_trim"):
            self._libc.malloc_trim(0)
