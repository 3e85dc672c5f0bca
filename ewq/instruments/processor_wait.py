"""The processor: cores, what other programs took of them, and threads that do not spin."""

from __future__ import annotations

import os
from pathlib import Path

_THREADS = Path("/proc/self/task")
_ROUNDING_NS = 1_000_000


def wait_without_spinning() -> None:
    """Let OpenMP's idle threads sleep after a moment, unless the environment says otherwise.

    Spinning takes the time that a process on the same cores needs; without the moment, some ten
    microseconds of GNU's library, llama.cpp decodes at half its speed. Read once, when torch or
    llama.cpp is loaded; child processes inherit it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def usable_cores() -> int:
    """Cores this process may use: a container's share, where the system tells it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ProcessorWait:
    """Reads from the kernel (``schedstat``) how long this process's threads waited for a core."""

    def __enter__(self) -> ProcessorWait:
        self._before = self._after = _run_and_wait_ns()
        return self

    def __exit__(self, *raised: object) -> None:
        self._after = _run_and_wait_ns()

    @property
    def share(self) -> float | None:
        """Time waited as a share of the time wanted; ``None`` where the kernel does not count."""
        if self._before is None or self._after is None:
            return None
        ran, waited = (b - a for a, b in zip(self._before, self._after, strict=True))
        return max(waited, 0) / (ran + waited) if ran > _ROUNDING_NS else None


def _run_and_wait_ns() -> tuple[int, int] | None:
    try:
        fields = [path.read_text(encoding="ascii").split() for path in _THREADS.glob("*/schedstat")]
    except OSError:
        # A thread that ended meanwhile.
        return None
    return sum(int(ran) for ran, *_ in fields), sum(int(waited) for _, waited, *_ in fields)
