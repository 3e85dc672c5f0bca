"""From a Hugging Face folder to a GGUF of 16- or 32-bit weights, by llama.cpp's converter.

The script and what it imports, another ``gguf`` module too, are taken from llama-cpp-python's
pinned source archive and only ever run in a child process, which runs no code of the model.
``python -m ewq.gguf.convert`` fetches them now, so that exports need no network.
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Collection
from pathlib import Path

from ewq.errors import BackendUnavailable, CheckpointError, EwqError, InputError
from ewq.files import cache_dir, whole_folder
from ewq.gguf import convert_child
from ewq.gguf.probe import run_child, why_ended
from ewq.progress import NO_PROGRESS, Progress, step

VARIABLE = "EWQ_GGUF_CONVERTER"
SCRIPT = "convert_hf_to_gguf.py"
PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
ARCHIVE_BYTES = 76_589_250
ARCHIVE_ROOT = f"llama_cpp_python-{VERSION}/vendor/llama.cpp"
ARCHIVE_PARTS = (
    *(SCRIPT, "conversion", "gguf-py/gguf", "LICENSE"),
    *("models/ggml-vocab-gpt-neox.gguf", "models/ggml-vocab-llama-spm.gguf"),
)
CONVERTED_TYPES = ("F32", "F16", "BF16")
UNKNOWN_TOKENIZER_NOTE = (
    "llama.cpp does not know this tokenizer's splitting rule: the file is complete for token ids "
    "given by the checkpoint's own tokenizer, as ewq does, but llama.cpp may split text otherwise"
)

_WRITING = re.compile(r"Writing:\s+(?P<percent>\d+)%")


def convert_folder(
    folder: Path,
    out: Path,
    type_name: str,
    progress: Progress = NO_PROGRESS,
    *,
    without: Collection[str] = (),
) -> tuple[str, ...]:
    """Convert a folder, tokenizer and chat template included; returns notes for people.

    Matrices become ``type_name``, vectors stay F32, tensors ``without`` are left out. A
    CheckpointError with the converter's last line where it does not know the model.
    """
    arguments = [str(folder), "--outtype", type_name.lower(), "--outfile", str(out)]
    script = str(find_converter(progress))
    command = [sys.executable, "-P", str(convert_child.__file__), script, *arguments]
    environment = {**os.environ, convert_child.WITHOUT: ",".join(without)}
    written = 0

    def heard(line: str) -> bool:
        """Its own progress bar, whose carriage returns end lines in text mode."""
        nonlocal written
        if bar := _WRITING.match(line):
            advance(int(bar["percent"]) - written)
            written = int(bar["percent"])
        return bool(bar)

    with step(progress, "converting to GGUF", 100, "%") as advance:
        status, said = run_child(command, heard, environment=environment)
    if status or not out.is_file():
        why = why_ended(status, said)
        raise CheckpointError(f"llama.cpp's converter cannot convert {folder}: {why}")
    known = convert_child.UNKNOWN_TOKENIZER not in said
    return () if known else (UNKNOWN_TOKENIZER_NOTE,)


def find_converter(progress: Progress = NO_PROGRESS) -> Path:
    """The script that ``$EWQ_GGUF_CONVERTER`` names, or the pinned one, fetched once.

    An InputError where the script named does not exist, a BackendUnavailable where the pinned one
    cannot be fetched.
    """
    if named := os.environ.get(VARIABLE):
        script = Path(named).expanduser()
        if not script.is_file():
            raise InputError(f"no converter at {named}; give the path of llama.cpp's {SCRIPT}")
        return script
    folder = cache_dir("converter", f"llama.cpp-of-{PACKAGE}-{VERSION}")
    if not (folder / SCRIPT).is_file():
        fetching = step(progress, "fetching llama.cpp's converter", ARCHIVE_BYTES, "bytes")
        with whole_folder(folder, shared=True) as work, fetching:
            _install(work)
    return folder / SCRIPT


def _install(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        pinned = Path(scratch) / "archive.txt"
        pinned.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
        options = ["--quiet", "--no-input", "--no-deps", "--disable-pip-version-check"]
        options += ["--no-binary", PACKAGE, "--require-hashes", "-r", str(pinned)]
        words = [sys.executable, "-m", "pip", "download", *options, "--dest", scratch]
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "ERROR" in line] or [done.stderr]
            raise BackendUnavailable(
                f"{PACKAGE}=={VERSION} with llama.cpp's converter cannot be fetched "
                f"({said[-1].strip()}); name its {SCRIPT} in ${VARIABLE}"
            )
        [archive] = Path(scratch).glob("*.tar.gz")
        wanted = tuple(f"{ARCHIVE_ROOT}/{part}" for part in ARCHIVE_PARTS)
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.name.startswith(wanted):
                    member.name = member.name.removeprefix(f"{ARCHIVE_ROOT}/")
                    tar.extract(member, folder, filter="data")


if __name__ == "__main__":
    try:
        find_converter()
    except EwqError as error:
        sys.exit(f"ewq: {error}")
