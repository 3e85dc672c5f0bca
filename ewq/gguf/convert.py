"""From a Hugging Face folder to a GGUF of 16- or 32-bit weights, by llama.cpp's converter."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from ewq.errors import CheckpointError
from ewq.gguf import convert_child
from ewq.gguf.converter import find_converter
from ewq.progress import NO_PROGRESS, Progress

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
        progress: told in percent of the bytes to write.

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
