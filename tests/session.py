"""Things made once per test session, whichever of its processes asks first."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

VARIABLE = "EWQ_TEST_SESSION"
"""Names the folder that all processes of a session share."""


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``name``, filled by ``make(folder)`` the first time; not to be changed after."""
    folder = Path(os.environ[VARIABLE]) / "made" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                make(Path(scratch) / "work")
                (Path(scratch) / "work").rename(folder)
    return folder


def copy_of(made: Path, folder: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, folder, dirs_exist_ok=True))
