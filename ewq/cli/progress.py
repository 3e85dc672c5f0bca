"""Progress of the command line: on a terminal, on stderr, else nothing."""

from __future__ import annotations

import shutil
import sys
from functools import partial

from ewq.progress import NO_PROGRESS, Progress, TerminalProgress


def terminal_progress() -> Progress:
    """A drawn line where stderr is a terminal, else silence."""
    if not sys.stderr.isatty():
        return NO_PROGRESS
    write = partial(print, end="", file=sys.stderr, flush=True)
    return TerminalProgress(write, lambda: shutil.get_terminal_size().columns)


def quiet_transformers() -> None:
    """transformers draws its bars into pipes as well; only a terminal gets one."""
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
