"""Things made once per test session, whichever of its processes asks first."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "EWQ_TEST_SESSION"
"""Names the folder that all processes of a session share."""


@contextmanager
def alone(name: str) -> Iterator[Path]:
    """Nobody else in this session does ``name`` meanwhile; yields the path for what comes of it."""
    path = Path(os.environ[VARIABLE]) / "made" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``name``, filled by ``make(folder)`` the first time; not to be changed after."""
    with alone(name) as folder:
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                make(Path(scratch) / name)
                (Path(scratch) / name).rename(folder)
    return folder
