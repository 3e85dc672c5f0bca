"""From what the user typed to files on this machine: folders, the hub's cache, downloads."""

from __future__ import annotations

import json
import re
import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ewq.errors import CheckpointError
from ewq.progress import NO_PROGRESS, Progress, step

WANTED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_GB = 1e9
_NOTHING = "{}: no such folder or file, and not a hub id like owner/name"


def resolve(model: str, progress: Progress = NO_PROGRESS) -> Path:
    """Local folder or ``.gguf`` file of a model; a hub id is taken from the cache or downloaded.

    Raises:
        CheckpointError: nothing there; a hub id that is neither cached nor reachable; or no room.
    """
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
    if cached is not None and _complete(cached):
        return cached
    from huggingface_hub import constants

    downloaded = None if constants.HF_HUB_OFFLINE else _snapshot(model, progress)
    if downloaded is None or (downloaded == cached and not _complete(cached)):
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


def _complete(folder: Path) -> bool:
    """Whether a snapshot has its config and every shard its index names."""
    index = folder / "model.safetensors.index.json"
    if not (folder / "config.json").is_file():
        return False
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError):
        return False
    return all((folder / str(shard)).is_file() for shard in shards)


def _snapshot(model: str, downloading: Progress | None = None) -> Path | None:
    """The snapshot folder; ``None`` where it is not cached or the hub cannot be reached.

    Without a progress to report to, only the cache is asked.
    """
    from huggingface_hub import snapshot_download

    # HTTPError is that of whichever HTTP library this release uses.
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        if downloading is not None:
            return _download(model, downloading)
        return Path(snapshot_download(model, allow_patterns=list(WANTED), local_files_only=True))
    except GatedRepoError as error:
        raise CheckpointError(f"{model} is gated; accept its terms and log in first") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"the hub has no model {model}, or it is private") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        return None
    except HfHubHTTPError as error:
        raise CheckpointError(f"the hub refuses {model}: {error}".split("\n")[0]) from error
    except HFValidationError as error:
        raise CheckpointError(_NOTHING.format(model)) from error
    except (HTTPError, OSError) as error:
        reason = str(error).split("\n")[0]
        if downloading is None:
            raise CheckpointError(f"cannot read the Hugging Face cache: {reason}") from error
        raise CheckpointError(
            f"download of {model} incomplete ({reason}); finished files are kept, try again"
        ) from error


def _download(model: str, progress: Progress) -> Path:
    """The snapshot's folder, once all wanted files are in the Hugging Face cache."""
    from huggingface_hub import snapshot_download

    missing_bytes = _missing_bytes(model)
    _require_room(model, missing_bytes)
    # Who draws nothing himself gets the library's own bars, which a pipe does not.
    bars = None if progress is NO_PROGRESS else _bars_for(progress)
    with step(progress, f"downloading {model}", missing_bytes, "bytes"):
        return Path(snapshot_download(model, allow_patterns=list(WANTED), tqdm_class=bars))


def _missing_bytes(model: str) -> int:
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
        if any(fnmatchcase(name, pattern) for pattern in WANTED)
        and not isinstance(try_to_load_from_cache(model, name, revision=found.sha), str)
    )


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
