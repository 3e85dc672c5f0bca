"""From a Hugging Face folder to a GGUF of 16- or 32-bit weights, by llama.cpp's converter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ewq.errors import CheckpointError
from ewq.gguf import convert_child
from ewq.gguf.converter import find_converter

CONVERTED_TYPES = ("F32", "F16", "BF16")
"""Types that need no quantizer."""
UNKNOWN_TOKENIZER_NOTE = (
    "llama.cpp does not know this tokenizer's splitting rule: the file is complete for token ids "
    "given by the checkpoint's own tokenizer, as ewq does, but llama.cpp may split text otherwise"
)


def convert_folder(
    folder: Path, out: Path, type_name: str, converter: Path | None = None
) -> tuple[str, ...]:
    """Convert a folder; tokenizer, special tokens and chat template included.

    Args:
        folder: with ``config.json``, safetensors and tokenizer files.
        out: the file to write; not atomic, so a scratch name.
        type_name: ``F32``, ``F16`` or ``BF16`` for matrices; vectors stay F32.
        converter: llama.cpp's own script instead of the pinned one.

    Returns:
        Notes for people.

    Raises:
        CheckpointError: the converter does not know the model; its own last line is quoted.
    """
    script = find_converter(converter)
    arguments = [str(folder), "--outtype", type_name.lower(), "--outfile", str(out)]
    command = [sys.executable, "-P", str(convert_child.__file__), str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not out.is_file():
        raise CheckpointError(f"llama.cpp's converter cannot convert {folder}: {_why(done.stderr)}")
    known = convert_child.UNKNOWN_TOKENIZER not in done.stderr
    return () if known else (UNKNOWN_TOKENIZER_NOTE,)


def _why(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
