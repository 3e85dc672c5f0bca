"""The largest reading of a gauge while some work runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

SAMPLING_INTERVAL_S = 0.01


class PeakWatch(Protocol):
    """A context manager that knows the peak of what it watched after its end."""

    peak_bytes: int

    def __enter__(self) -> PeakWatch: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class MemoryInstrument(Protocol):
    """Reads the memory of one place: a GPU or this process."""

    name: str
    """How it measures, as stored in the settings: ``nvml-device`` or ``process-rss``."""

    def used_bytes(self) -> int:
        """Bytes in use now."""
        ...

    def watch(self) -> PeakWatch:
        """A watch on the peak of :meth:`used_bytes`."""
        ...

    def shared_with(self) -> int:
        """Other processes whose memory the readings include."""
        ...


class SampledPeak:
    """Peak by reading every hundredth of a second in a thread; spikes between two are missed.

    The thread costs time, so it must never run beside a round whose time counts.
    """

    def __init__(self, read: Callable[[], int], interval_s: float = SAMPLING_INTERVAL_S) -> None:
        self.peak_bytes = 0
        self._read = read
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)

    def __enter__(self) -> SampledPeak:
        self.peak_bytes = self._read()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()
        self._keep(self._read())

    def _sample(self) -> None:
        while not self._stopped.wait(self._interval_s):
            self._keep(self._read())

    def _keep(self, reading: int) -> None:
        self.peak_bytes = max(self.peak_bytes, reading)
