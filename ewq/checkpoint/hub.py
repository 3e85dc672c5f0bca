"""From what the user typed to files on this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ewq.checkpoint.download import download_snapshot
from ewq.errors import CheckpointError
from ewq.progress import NO_PROGRESS, Progress

WANTED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_NOTHING = "{}: no such folder or file, and not a hub id like owner/name"


def resolve(model: str, progress: Progress = NO_PROGRESS) -> Path:
    """Local folder or ``.gguf`` file of a model; a hub id is taken from the cache or downloaded.

    Raises:
        CheckpointError: nothing there; a hub id that is neither cached nor reachable; or no room.
    """
    path = Path(model).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_file():
        raise CheckpointError(f"{model} is a file, but not .gguf; give a model folder or a GGUF")
    if not HUB_ID.fullmatch(model) or path.suffix == ".gguf":
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
            return download_snapshot(model, WANTED, downloading)
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
            f"{model} could not be downloaded whole ({reason}); files that arrived whole are kept"
        ) from error
