"""Progress of long work, reported to whoever draws it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A sink for progress; drawing is the command line's and the plugin's business."""

    def start(self, label: str, total: int, unit: str) -> None:
        """Begin a step of ``total`` units (``bytes``, ``questions``, ``tokens``, ``tensors``)."""
        ...

    def advance(self, amount: int) -> None:
        """Report ``amount`` more units done; safe to call from worker threads."""
        ...

    def finish(self) -> None:
        """The step is over, completed or not."""
        ...


class _NoProgress:
    def start(self, label: str, total: int, unit: str) -> None:
        """Draw nothing."""

    def advance(self, amount: int) -> None:
        """Draw nothing."""

    def finish(self) -> None:
        """Draw nothing."""


NO_PROGRESS: Progress = _NoProgress()
