"""Progress of long work, reported to whoever draws it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


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
