"""Downloading a model from the hub, with progress in bytes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ewq.errors import CheckpointError
from ewq.progress import NO_PROGRESS, Progress

_GB = 1e9


def download_snapshot(model: str, patterns: Sequence[str], progress: Progress) -> Path:
    """Bring a hub model's files into the Hugging Face cache; those already there are kept.

    Returns:
        The snapshot's folder.

    Raises:
        CheckpointError: the disk cannot hold what is missing.
        HfHubHTTPError: as :func:`huggingface_hub.snapshot_download`, also its other errors.
    """
    missing_bytes = _missing_bytes(model, patterns)
    _require_room(model, missing_bytes)
    progress.start(f"downloading {model}", missing_bytes, "bytes")
    try:
        return _fetch(model, patterns, progress)
    finally:
        progress.finish()


def _missing_bytes(model: str, patterns: Sequence[str]) -> int:
    """Bytes of the wanted files that the cache lacks; 0 where the hub does not answer."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        found = HfApi().model_info(model, files_metadata=True)
    except (HTTPError, OSError):
        # The download that follows meets the same, and its caller knows what to say.
        return 0
    sizes = {file.rfilename: file.size or 0 for file in found.siblings or ()}
    return sum(
        sizes[name]
        for name in sizes
        if any(fnmatchcase(name, pattern) for pattern in patterns)
        and not isinstance(try_to_load_from_cache(model, name, revision=found.sha), str)
    )


def _fetch(model: str, patterns: Sequence[str], progress: Progress) -> Path:
    from huggingface_hub import snapshot_download

    # Who draws nothing himself gets the library's own bars, which a pipe does not.
    bars = None if progress is NO_PROGRESS else _bars_for(progress)
    return Path(snapshot_download(model, allow_patterns=list(patterns), tqdm_class=bars))


def _require_room(model: str, missing_bytes: int) -> None:
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (place, *place.parents) if folder.is_dir())
    free_bytes = shutil.disk_usage(existing).free
    if missing_bytes > free_bytes:
        raise CheckpointError(
            f"{model} takes {missing_bytes / _GB:.1f} GB more and {place} has "
            f"{free_bytes / _GB:.1f} GB left; free some, or move the cache with HF_HOME"
        )


def _bars_for(progress: Progress) -> Any:  # noqa: ANN401 - a class made for one download
    """A tqdm class that draws nothing and reports bytes written to ``progress``."""
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - tqdm's own
            # One bar counts files, one what the network brings, one what reaches the disk.
            label = str(options.get("desc"))
            self._counts = options.get("unit") == "B" and not label.startswith("Downloading")
            super().__init__(*args, **(options | {"disable": True}))

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts:
                progress.advance(int(n or 0))
            return None

    return Bar
