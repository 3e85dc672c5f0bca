"""Progress of long work, and what shows it on a terminal or in a log."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Protocol

from tqdm import tqdm

_LOG_COLUMNS = 100
tqdm.monitor_interval = 0  # no thread beside what is timed


class Progress(Protocol):
    """A sink for progress; drawing is the command line's and the plugin's business."""

    def start(self, label: str, total: int, unit: str) -> None:
        """Begin a step of ``total`` units (``bytes``, ``questions``, ``tokens``, ``tensors``)."""

    def advance(self, amount: int) -> None:
        """Report ``amount`` more units done; safe to call from worker threads."""

    def finish(self) -> None:
        """The step is over, completed or not."""


class _NoProgress:
    def start(self, *_: object, **__: object) -> None:
        pass

    advance = finish = start


NO_PROGRESS: Progress = _NoProgress()


@contextmanager
def step(progress: Progress, label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A step that is over with the block, completed or not; gives what reports units done."""
    progress.start(label, total, unit)
    try:
        yield progress.advance
    finally:
        progress.finish()


class TerminalProgress:
    """A bar of tqdm on a line of its own, which is gone when its step is over."""

    def __init__(self, write: Callable[[str], object], columns: Callable[[], int]) -> None:
        self._file = SimpleNamespace(write=write, flush=lambda: None)
        self._columns = columns
        self._bar: Any = tqdm(disable=True)

    def start(self, label: str, total: int, unit: str) -> None:
        """Begin a step, drawn at once."""
        size = {"unit": "B", "unit_scale": True} if unit == "bytes" else {"unit": f" {unit}"}
        self._bar = tqdm(
            total=total,
            desc="".join(char if char.isprintable() else " " for char in label),
            bar_format=None if total > 1 else "{desc} ...",
            file=self._file,
            ncols=self._columns() - 1,
            leave=False,
            ascii=True,
            **size,
        )

    def advance(self, amount: int) -> None:
        """Report progress; shown only so often."""
        with self._bar.get_lock():
            self._bar.update(amount)

    def finish(self) -> None:
        """Remove the line."""
        self._bar.close()


class LogProgress(TerminalProgress):
    """A line a minute with what is left, for the log of a CI job, in which nothing is redrawn."""

    def __init__(self, write: Callable[[str], object]) -> None:
        super().__init__(lambda text: None, lambda: _LOG_COLUMNS)
        self._write = write
        self._told_s = time.monotonic()

    def advance(self, amount: int) -> None:
        """Report progress, told once a minute."""
        super().advance(amount)
        if not self._bar.disable and time.monotonic() - self._told_s > 60:
            self._write(f"\n{self._bar}\n")
            self._told_s = time.monotonic()


def progress_on(
    terminal: bool, write: Callable[[str], object], columns: Callable[[], int]
) -> Progress:
    """A bar on a ``terminal``, one a minute in a CI job (as ``$CI`` says), else silence."""
    if terminal:
        return TerminalProgress(write, columns)
    return LogProgress(write) if os.environ.get("CI") else NO_PROGRESS
