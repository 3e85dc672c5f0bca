"""From what the user typed to files on this machine: folders, the hub's cache, downloads."""

import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from ewq.errors import CheckpointError
from ewq.progress import NO_PROGRESS, Progress, step

WANTED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_NOTHING = "{}: no such folder or file, and not a hub id like owner/name"


def resolve(model: str, progress: Progress = NO_PROGRESS) -> Path:
    """Local folder or ``.gguf`` file of a model; a hub id is taken from the cache or downloaded."""
    path = Path(model).expanduser()
    try:
        path.exists()
    except OSError as error:
        raise CheckpointError(f"{model}: {error.strerror}") from error
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".gguf"):
        return path
    if path.is_file():
        raise CheckpointError(f"{model} is a file, but not .gguf; give a model folder or a GGUF")
    if not HUB_ID.fullmatch(model) or path.suffix.lower() == ".gguf":
        raise CheckpointError(_NOTHING.format(model))
    return _from_hub(model, progress)


def _from_hub(model: str, progress: Progress) -> Path:
    cached = _snapshot(model)
    if cached is not None and any(cached.glob("*.safetensors")):
        return cached
    from huggingface_hub import constants

    downloaded = None if constants.HF_HUB_OFFLINE else _snapshot(model, progress)
    if downloaded is None or downloaded == cached:
        raise CheckpointError(
            f"{model} is not in the Hugging Face cache, or not all of it, and the hub cannot be "
            "reached; go online, or give a local folder"
        )
    if not any(downloaded.glob("*.safetensors")):
        raise CheckpointError(
            f"{model} has no safetensors on the hub, and pickle files can run code when opened; "
            "use a conversion to safetensors"
        )
    return downloaded


def _snapshot(model: str, downloading: Progress | None = None) -> Path | None:
    """The snapshot folder; ``None`` where it is not all cached or the hub cannot be reached.

    Without a progress to report to, only the cache is asked.
    """
    from huggingface_hub import errors, snapshot_download

    get = partial(snapshot_download, model, allow_patterns=list(WANTED))
    try:
        if downloading is None:
            return Path(get(local_files_only=True))
        wanted: Any = get(dry_run=True, tqdm_class=_bars_for(NO_PROGRESS))
        missing_bytes = sum(file.file_size or 0 for file in wanted if file.will_download)
        _require_room(model, missing_bytes)
        # Who draws nothing himself gets the library's own bars, which a pipe does not.
        bars = None if downloading is NO_PROGRESS else _bars_for(downloading)
        with step(downloading, f"downloading {model}", missing_bytes, "bytes"):
            return Path(get(tqdm_class=bars))
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        return None
    except errors.DryRunError as error:
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise CheckpointError(_why_not(model, error.__cause__, downloading)) from error
        return None
    # HTTPError is that of whichever HTTP library this release uses.
    except (errors.HFValidationError, errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise CheckpointError(_why_not(model, error, downloading)) from error


def _why_not(model: str, error: Exception, downloading: Progress | None) -> str:
    from huggingface_hub import errors

    reason = str(error).split("\n")[0]
    if isinstance(error, errors.HFValidationError):
        return _NOTHING.format(model)
    if isinstance(error, errors.GatedRepoError):
        return f"{model} is gated; accept its terms and log in first"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no model {model}, or it is private"
    if isinstance(error, errors.HfHubHTTPError):
        return f"the hub refuses {model}: {reason}"
    if downloading is None:
        return f"cannot read the Hugging Face cache: {reason}"
    return f"download of {model} incomplete ({reason}); finished files are kept, try again"


def _require_room(model: str, missing_bytes: int) -> None:
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (place, *place.parents) if folder.is_dir())
    free_bytes = shutil.disk_usage(existing).free
    if missing_bytes > free_bytes:
        raise CheckpointError(
            f"{model} takes {missing_bytes / 1e9:.1f} GB more and {place} has "
            f"{free_bytes / 1e9:.1f} GB left; free some, or move the cache with HF_HOME"
        )


def _bars_for(progress: Progress) -> Any:
    """A tqdm class that draws nothing and reports bytes written to ``progress``."""
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            # One bar counts files, one what the network brings, one what reaches the disk.
            label = str(options.get("desc"))
            self._counts = options.get("unit") == "B" and not label.startswith("Downloading")
            super().__init__(*args, **(options | {"disable": True}))

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts:
                progress.advance(int(n or 0))
            return None

    return Bar
