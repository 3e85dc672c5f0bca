"""A progress line behind pytest's own, on a terminal only."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from ewq.progress import NO_PROGRESS, Progress
from ewq.report.escaping import terminal_line

_REDRAW_S = 0.2
_BAR_CELLS = 20
_MEGA = 1e6


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

        if self.total <= 1:
            lines = [f"{self.label} ..."]
        else:
            counted = f"{self.label} {self._amount}"
            lines = [f"{self.label} {self._bar} {self._amount}{self._left}", counted, self.label]
        return next((line for line in lines if cell_len(line) <= room), "")

    @property
    def _bar(self) -> str:
        filled = _BAR_CELLS * min(self.done, self.total) // self.total
        return f"[{'#' * filled}{'-' * (_BAR_CELLS - filled)}]"

    @property
    def _amount(self) -> str:
        if self.unit == "bytes":
            return f"{self.done / _MEGA:.0f}/{self.total / _MEGA:.0f} MB"
        return f"{self.done}/{self.total} {self.unit}"

    @property
    def _left(self) -> str:
        if not 0 < self.done < self.total:
            return ""
        passed_s = time.monotonic() - self.started_s
        minutes, seconds = divmod(round(passed_s * (self.total - self.done) / self.done), 60)
        return f", {minutes}:{seconds:02d} left"


class TerminalProgress:
    """Draws to the right of what pytest has written, and leaves the cursor where pytest had it.

    So whatever pytest writes next stands where it would have stood, and nothing of its is erased.
    """

    def __init__(self, reporter: Any, capture: Any) -> None:  # noqa: ANN401 - pytest internals
        self._reporter = reporter
        self._capture = capture
        self._lock = threading.Lock()
        self._step: Step | None = None
        self._drawn_s = 0.0

    def start(self, label: str, total: int, unit: str) -> None:
        """Begin a step."""
        with self._lock:
            self._step = Step(terminal_line(label), total, unit)
            self._draw(self._step)

    def advance(self, amount: int) -> None:
        """Report progress; redraws at most five times a second."""
        with self._lock:
            if self._step is None:
                return
            self._step.done += amount
            if time.monotonic() - self._drawn_s > _REDRAW_S:
                self._draw(self._step)

    def finish(self) -> None:
        """Remove the line."""
        with self._lock:
            if self._step is not None:
                self._write("\x1b[K")
            self._step = None

    def _draw(self, step: Step) -> None:
        from rich.cells import cell_len

        writer = self._reporter._tw
        # One cell stays free: behind the last one the cursor would be on the next line.
        text = step.fitting(writer.fullwidth - writer.width_of_current_line - 1)
        back = f"\x1b[{cell_len(text)}D" if text else ""
        self._write(f"\x1b[K{text}{back}")
        self._drawn_s = time.monotonic()

    def _write(self, text: str) -> None:
        """Write past pytest's capture and its count of the line's width."""
        with self._capture.global_and_fixture_disabled():
            self._reporter._tw._file.write(text)
            self._reporter._tw._file.flush()


def find_progress(config: pytest.Config) -> Progress:
    """A drawn progress on a terminal, a silent one in pipes and CI logs."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if reporter is None or capture is None or not reporter.isatty:
        return NO_PROGRESS
    return TerminalProgress(reporter, capture)
