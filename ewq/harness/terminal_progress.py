"""A progress line under pytest's output, on a terminal only."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from ewq.progress import NO_PROGRESS, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichBar
    from rich.progress import TaskID

_REDRAW_S = 0.2


class TerminalProgress:
    """Draws a bar with the time left, around pytest's output capture."""

    def __init__(self, reporter: Any, capture: Any) -> None:  # noqa: ANN401 - pytest internals
        self._reporter = reporter
        self._capture = capture
        self._bar: RichBar | None = None
        self._task: TaskID | None = None
        self._drawn_s = 0.0

    def start(self, label: str, total: int, unit: str) -> None:
        """Begin a step."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(),
        )
        console = Console(file=self, force_terminal=True)  # type: ignore[arg-type]
        self._bar = Progress(*columns, console=console, auto_refresh=False, transient=True)
        self._task = self._bar.add_task(label, total=total)
        self._bar.start()

    def advance(self, amount: int) -> None:
        """Report progress; redraws at most five times a second."""
        if self._bar is None or self._task is None:
            return
        self._bar.update(self._task, advance=amount)
        if time.monotonic() - self._drawn_s > _REDRAW_S:
            self._drawn_s = time.monotonic()
            self._bar.refresh()

    def finish(self) -> None:
        """Remove the line."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = None

    def write(self, text: str) -> int:
        """Write through pytest's capture to the terminal."""
        with self._capture.global_and_fixture_disabled():
            self._reporter._tw._file.write(text)
            self._reporter._tw._file.flush()
        return len(text)

    def flush(self) -> None:
        """Writing flushes already."""

    def isatty(self) -> bool:
        """Only made on a terminal."""
        return True


def find_progress(config: pytest.Config) -> Progress:
    """A drawn progress on a terminal, a silent one in pipes and CI logs."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if reporter is None or capture is None or not reporter.isatty:
        return NO_PROGRESS
    return TerminalProgress(reporter, capture)
