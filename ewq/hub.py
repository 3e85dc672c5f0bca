"""From what the user typed to files on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from ewq.errors import CheckpointError

WANTED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.bin.index.json")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve(model: str) -> Path:
    """Local folder or ``.gguf`` file of a model; a hub id is taken from the cache or downloaded.

    Raises:
        CheckpointError: nothing there; or a hub id that is neither cached nor reachable.
    """
    path = Path(model).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_file():
        raise CheckpointError(f"{model} is a file, but not .gguf; give a model folder or a GGUF")
    if not HUB_ID.fullmatch(model) or path.suffix == ".gguf":
        raise CheckpointError(f"{model}: no such folder or file, and not a hub id like owner/name")
    return _from_hub(model)


def _from_hub(model: str) -> Path:
    cached = _snapshot(model, local_only=True)
    if cached is not None and _complete(cached):
        return cached
    downloaded = _snapshot(model, local_only=False)
    if downloaded is None:
        raise CheckpointError(
            f"{model} is not in the Hugging Face cache and the hub cannot be reached; "
            "go online, or give a local folder"
        )
    return downloaded


def _complete(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _snapshot(model: str, *, local_only: bool) -> Path | None:
    """The snapshot folder; ``None`` where it is not cached or the hub cannot be reached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        return Path(
            snapshot_download(model, allow_patterns=list(WANTED), local_files_only=local_only)
        )
    except GatedRepoError as error:
        raise CheckpointError(f"{model} is gated; accept its terms and log in first") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"the hub has no model {model}, or it is private") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        return None
    except HfHubHTTPError as error:
        raise CheckpointError(f"the hub refuses {model}: {error}".split("\n")[0]) from error
