"""From what the user typed to files on this machine: folders, the hub's cache, downloads."""

import re
import sys
from pathlib import Path

from ewq.errors import CheckpointError
from ewq.progress import NO_PROGRESS, Progress, step

WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
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
    downloaded = _snapshot(model, progress)
    if downloaded is None or downloaded == cached:
        raise CheckpointError(f"{model} is not in the Hugging Face cache, or incomplete; go online")
    if not any(downloaded.glob("*.safetensors")):
        raise CheckpointError(f"{model} has no safetensors on the hub; take a conversion to them")
    return downloaded


def _snapshot(model: str, downloading: Progress | None = None) -> Path | None:
    """The snapshot folder; ``None`` where it is not all cached or the hub cannot be reached.

    Without a progress to report to, only the cache is asked.
    """
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    try:
        if downloading is None:
            return Path(snapshot_download(model, allow_patterns=WANTED, local_files_only=True))
        if not sys.stderr.isatty():
            disable_progress_bars()  # the library draws them into pipes as well
        with step(downloading, f"downloading {model}", 1, "model"):
            return Path(snapshot_download(model, allow_patterns=WANTED))
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        return None
    # HTTPError is that of whichever HTTP library this release uses.
    except (errors.HFValidationError, errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise CheckpointError(_why_not(model, error)) from error


def _why_not(model: str, error: Exception) -> str:
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
    return f"cannot get all of {model} ({reason}); finished files are kept, try again"
