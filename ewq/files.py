"""Files and folders that appear whole or not at all, and the cache, with keys of its content."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ewq.errors import EwqError, InputError

SCRATCH = ".ewq-"
"""How the names of folders begin in which something is being made."""
ABANDONED_AFTER_S = 60


def cache_dir(*parts: str) -> Path:
    """``$EWQ_CACHE``, ``$XDG_CACHE_HOME/ewq`` or ``~/.cache/ewq``, then ``parts``; not created."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("EWQ_CACHE") or Path(user, "ewq"), *parts)


CACHES = {
    "models": "the embedded model, unpacked from its package",
    "converter": "llama.cpp's converter; the network is needed to fetch it again",
    "gguf": "GGUF files of models and variants",
    "probes": "which GGUF files llama.cpp opened without ending the process",
    "analyses": "statistics of weights that plans rest on",
    "sensitivity": "how much each weight matters, for fitted plans",
    "costs": "what each type costs each tensor, for fitted plans",
    "imatrix": "importance matrices of models",
    "references": "results of the unquantized model, for paired figures",
    "distributions": "its distributions, while a run lasts",
    "dummy": "models with random weights",
}
"""Kinds of what is cached, each a folder -> what it holds."""


def cached_kinds() -> list[str]:
    """The kinds of :data:`CACHES` that there are."""
    return [kind for kind in CACHES if cache_dir(kind).is_dir()]


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder, links not followed; what vanishes meanwhile has none."""
    total = 0
    for above, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(above, name).lstat().st_size
    return total


def caches_made(before: Collection[str]) -> str:
    """A line on kinds that were not there ``before``; empty where they are small."""
    made = [kind for kind in cached_kinds() if kind not in before]
    size = sum(folder_bytes(cache_dir(kind)) for kind in made)
    advice = "`ewq cache` lists it, `ewq cache clean` removes it"
    said = f"kept {size / 1e6:.0f} MB in {cache_dir()} ({', '.join(made)}): {advice}"
    return said if size >= 10_000_000 else ""


def clean_cache(kind: str) -> None:
    """Remove a kind of what is cached; an EwqError where that is not permitted."""
    folder = cache_dir(kind)
    with said_of(folder):
        if folder.is_symlink():
            folder.unlink()
        elif folder.is_dir():
            shutil.rmtree(folder)


def content_key(*parts: object) -> str:
    """SHA-256 in hexadecimal of JSON values, whatever the order of their keys."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 in hexadecimal of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_cached(kind: str, key: str) -> Any:
    """What :func:`write_cached` kept under a key; ``None`` where it is absent or damaged."""
    try:
        entry = json.loads(cache_dir(kind, f"{key}.json").read_text(encoding="utf-8"))
        return entry["value"] if entry["digest"] == content_key(key, entry["value"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_cached(kind: str, key: str, value: object) -> None:
    """Keep a JSON value under a key; where the cache cannot be written it is simply not kept."""
    entry = {"digest": content_key(key, value), "value": value}
    with suppress(EwqError):
        write_text(cache_dir(kind, f"{key}.json"), json.dumps(entry))


def write_text(path: Path, text: str) -> Path:
    """Replace ``path`` by ``text`` (UTF-8) in one step; an EwqError leaves ``path`` untouched."""
    with said_of(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=SCRATCH)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
    return path


@contextmanager
def whole_folder(target: Path, *, shared: bool = False) -> Iterator[Path]:
    """A folder to work in, which becomes ``target`` when the block ends without an error.

    Where several processes make the same ``shared`` folder, the work of the first to finish stays.
    An EwqError where it cannot be written: full disk, no permission, or taken meanwhile.
    """
    with said_of(target), scratch_beside(target) as work:
        yield work
        if shared and target.exists():
            return
        for path in work.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        work.chmod(0o755)
        work.rename(target)


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A hidden folder on the disk of ``out`` that is removed whatever happens.

    One that a killed process left behind is removed by the next that works in the same place.
    """
    with said_of(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out.parent)
        work = Path(tempfile.mkdtemp(dir=out.parent, prefix=SCRATCH))
        lock = _locked(work)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_abandoned(folder: Path) -> None:
    for path in folder.glob(f"{SCRATCH}*"):
        # Between a folder's making and its locking another process must not take it for abandoned.
        recent = time.time() - path.stat().st_mtime < ABANDONED_AFTER_S
        if not recent and path.is_dir() and (lock := _locked(path)) is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the folder; ``None`` where another process has it, or on Windows."""
    if sys.platform == "win32":
        return None
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def check_output(path: Path, *, folder: bool = False, needed_bytes: int = 0) -> None:
    """Raise an InputError for an output that could not be written, before any work for it.

    ``path`` is a file to write or replace, or a ``folder`` that must not exist or be empty.
    """
    try:
        with suppress(FileNotFoundError):
            path.lstat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise InputError(f"cannot write {path}: {reason}") from error
    if folder and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} exists and is not an empty folder; remove it or choose another")
    if not folder and path.is_dir():
        raise InputError(f"{path} is a folder; name the file to write")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise InputError(f"cannot write {path}: {above} is not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {path}: no permission to write to {above}")
    if (free := shutil.disk_usage(above).free) < needed_bytes:
        needs = f"{path} needs at least {needed_bytes / 1e9:.2f} GB"
        has = f"the disk of {above} has {free / 1e9:.2f} GB free{_advice(path)}"
        raise InputError(f"{needs}, and {has}")


@contextmanager
def said_of(path: Path) -> Iterator[None]:
    """An operating system's error as one line that names ``path``."""
    try:
        yield
    except OSError as error:
        raise EwqError(f"cannot write {path}: {error.strerror or error}{_advice(path)}") from error


def _advice(path: Path) -> str:
    return "; set EWQ_CACHE to a folder with space" if path.is_relative_to(cache_dir()) else ""


def sync_file(path: Path) -> None:
    """Make a file that another library wrote, and its name, survive a power loss."""
    for each in (path, path.parent):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
