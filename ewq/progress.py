"""Progress of long work, and the line on a terminal that shows it."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

_BAR_CELLS = 20
LOG_CELLS = 100
_CLEAR = "\x1b[K"


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


@dataclass
class Step:
    """What is being done and how far it is."""

    label: str
    total: int
    unit: str
    done: int = 0
    started_s: float = field(default_factory=time.monotonic)

    def fitting(self, room: int) -> str:
        """The longest line of this step that ``room`` cells hold; empty where none does."""
        from rich.cells import cell_len

        lines = [f"{self.label} ..."]
        if self.total > 1:
            filled = _BAR_CELLS * min(self.done, self.total) // self.total
            bar = f"[{'#' * filled}{'-' * (_BAR_CELLS - filled)}]"
            amount = f"{self.done}/{self.total} {self.unit}"
            if self.unit == "bytes":
                amount = f"{self.done / 1e6:.0f}/{self.total / 1e6:.0f} MB"
            whole = f"{self.label} {bar} {amount}{self._left}"
            lines = [whole, f"{self.label} {amount}", self.label]
        return next((line for line in lines if cell_len(line) <= room), "")

    @property
    def _left(self) -> str:
        if not 0 < self.done < self.total:
            return ""
        passed_s = time.monotonic() - self.started_s
        minutes, seconds = divmod(round(passed_s * (self.total - self.done) / self.done), 60)
        return f", {minutes}:{seconds:02d} left"


class TerminalProgress:
    """Draws in the ``room`` to the right of the cursor, leaving it there: nothing is erased."""

    _every_s = 0.2

    def __init__(self, write: Callable[[str], None], room: Callable[[], int]) -> None:
        self._write = write
        self._room = room
        self._lock = threading.Lock()
        self._step: Step | None = None
        self._drawn_s = 0.0

    def start(self, label: str, total: int, unit: str) -> None:
        """Begin a step, drawn at once."""
        printable = "".join(char if char.isprintable() else " " for char in label)
        with self._lock:
            self._step = Step(printable, total, unit)
            self._draw(self._step)

    def advance(self, amount: int) -> None:
        """Report progress; shown only so often."""
        with self._lock:
            if self._step is None:
                return
            self._step.done += amount
            if time.monotonic() - self._drawn_s > self._every_s:
                self._draw(self._step)

    def finish(self) -> None:
        """Remove the line."""
        with self._lock:
            if self._step is not None:
                self._write(_CLEAR)
            self._step = None

    def _draw(self, step: Step) -> None:
        from rich.cells import cell_len

        # One cell stays free: behind the last one the cursor would be on the next line.
        text = step.fitting(self._room() - 1)
        back = f"\x1b[{cell_len(text)}D" if text else ""
        self._write(f"{_CLEAR}{text}{back}")
        self._drawn_s = time.monotonic()


class LogProgress(TerminalProgress):
    """A line a minute with what is left, for the log of a CI job, in which nothing is redrawn."""

    _every_s = 60

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__(write, lambda: LOG_CELLS)
        self._drawn_s = time.monotonic()

    def finish(self) -> None:
        """The step is over; its lines stay."""
        self._step = None

    def _draw(self, step: Step) -> None:
        if step.done:
            self._write(f"\n{step.fitting(LOG_CELLS)}\n")
            self._drawn_s = time.monotonic()


def progress_on(terminal: bool, write: Callable[[str], None], room: Callable[[], int]) -> Progress:
    """A drawn line on a ``terminal``, one a minute in a CI job (as ``$CI`` says), else silence."""
    if terminal:
        return TerminalProgress(write, room)
    return LogProgress(write) if os.environ.get("CI") else NO_PROGRESS
