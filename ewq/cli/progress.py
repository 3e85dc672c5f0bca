"""Progress bars of the command line: on a terminal, on stderr, else nothing."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichBar

from ewq.progress import NO_PROGRESS, Progress


class RichProgress:
    """Draws one bar per step; implements :class:`ewq.progress.Progress`."""

    def __init__(self) -> None:
        self._bar: RichBar | None = None
        self._task = TaskID(0)

    def start(self, label: str, total: int, unit: str) -> None:
        """Begin a bar of ``total`` units."""
        self.finish()
        amount: ProgressColumn = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
        self._bar = RichBar(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(label, total=total)
        self._bar.start()

    def advance(self, amount: int) -> None:
        """Move the bar; safe to call from worker threads."""
        if self._bar is not None:
            self._bar.advance(self._task, amount)

    def finish(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def terminal_progress() -> Progress:
    """A drawn bar where stderr is a terminal, else silence."""
    return RichProgress() if sys.stderr.isatty() else NO_PROGRESS


def quiet_transformers() -> None:
    """transformers draws its bars into pipes as well; only a terminal gets one."""
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
