"""Where ewq keeps what it can make again: dequantised models, analyses, exported GGUF files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ewq.errors import EwqError


def cache_dir(*parts: str) -> Path:
    """``$EWQ_CACHE``, ``$XDG_CACHE_HOME/ewq`` or ``~/.cache/ewq``, then ``parts``; not created."""
    if explicit := os.environ.get("EWQ_CACHE"):
        root = Path(explicit)
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ewq"
    return root.joinpath(*parts)


@contextmanager
def published_folder(target: Path) -> Iterator[Path]:
    """A folder that appears at ``target`` only when the block ends without an error.

    Work happens in a sibling folder, so the final step is one rename. When two
    processes build the same folder, the first to finish wins and the other's
    work is dropped.

    Raises:
        EwqError: the folder cannot be written (full disk, no permission).
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise EwqError(
            f"cannot write to {target.parent}: {error.strerror}; "
            "set EWQ_CACHE to a folder with space"
        ) from error
    try:
        yield work
        if not target.exists():
            work.rename(target)
    except OSError as error:
        raise EwqError(f"cannot finish {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
