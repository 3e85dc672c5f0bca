"""Resident memory of this process: every engine's weights, caches and buffers on CPU."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path
from types import TracebackType

from ewq.instruments.peak import PeakWatch, SampledPeak

PROC = Path("/proc/self")
# What proc(5) calls resetting the peak resident set size ("high water mark").
_RESET_PEAK = "5"


class ProcessMemory:
    """Resident set size, with the kernel's own peak where it can be reset (Linux)."""

    name = "process-rss"

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc

    def used_bytes(self) -> int:
        """Resident bytes now, memory-mapped weights that were touched included."""
        import psutil

        return int(psutil.Process().memory_info().rss)

    def watch(self) -> PeakWatch:
        """The kernel's high water mark; by sampling where it cannot be reset."""
        if _can_reset(self._proc):
            return KernelPeak(self._proc)
        return SampledPeak(self.used_bytes)

    def shared_with(self) -> int:
        """Always 0: the readings are this process's own."""
        return 0


class KernelPeak:
    """Peak resident set size as the kernel keeps it: exact, and free of cost."""

    def __init__(self, proc: Path = PROC) -> None:
        self.peak_bytes = 0
        self._proc = proc

    def __enter__(self) -> KernelPeak:
        (self._proc / "clear_refs").write_text(_RESET_PEAK)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.peak_bytes = high_water_mark_bytes(self._proc)


def high_water_mark_bytes(proc: Path = PROC) -> int:
    """``VmHWM`` of ``proc/status`` in bytes."""
    for line in (proc / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{proc / 'status'} has no VmHWM line")


def release_free_memory() -> None:
    """Give freed memory back to the system, so that a baseline holds live objects only."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
        if trim is not None:
            trim(0)


def _can_reset(proc: Path) -> bool:
    try:
        (proc / "clear_refs").write_text(_RESET_PEAK)
        high_water_mark_bytes(proc)
    except OSError:
        return False
    return True
