"""Trying a GGUF file in a child process, because native code may abort on a bad one.

A valid header does not make a loadable model: llama.cpp checks shapes and
metadata with assertions that end the process. The child loads the file and
computes two tokens; only a file that survives is opened here.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from ewq.errors import CheckpointError, EwqError

TIMEOUT_S = 900
ASSERTION = "GGML_ASSERT"
_passed: set[tuple[str, int, int]] = set()


def probe_file(path: Path, timeout_s: float = TIMEOUT_S) -> None:
    """Load ``path`` and compute two tokens in a child process.

    A file that passed is not tried again in this process while its size and
    modification time stay the same.

    Raises:
        CheckpointError: llama.cpp refuses the file, aborts on it, or hangs.
    """
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key in _passed:
        return
    try:
        done = subprocess.run(_command(path), capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise CheckpointError(f"{path}: llama.cpp did not load it within {timeout_s} s") from None
    if done.returncode:
        raise CheckpointError(_reason(path, done))
    _passed.add(key)


def _command(path: Path) -> list[str]:
    return [sys.executable, "-m", "ewq.gguf.probe", str(path)]


def _reason(path: Path, done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return (
            f"{path}: llama.cpp aborts on this file ({abort_reason(done.returncode, done.stderr)})"
        )
    said = done.stderr.strip().splitlines()
    return said[-1] if said else f"{path}: llama.cpp refuses this file"


def abort_reason(status: int, stderr: str) -> str:
    """Why a child ended by a signal: the assertion that failed, else the signal's name."""
    for line in stderr.splitlines():
        if ASSERTION in line:
            return line[line.index(ASSERTION) :]
    return signal.Signals(-status).name


def main(path: Path) -> None:
    """The child's work: load, compute two tokens, check that they are numbers."""
    import numpy as np

    from ewq.gguf.llama_native import NativeModel, NativeOptions, Tokens

    native = NativeModel(path, NativeOptions(False, 1, 32, 32, 1, 1))
    native.prepare(32)
    for logits in native.decode(Tokens.piece([0, native.vocab_size - 1], 0, 0, 0)):
        if not np.isfinite(logits).all():
            raise CheckpointError(f"{path}: its logits are not finite; the weights are damaged")
    native.close()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except EwqError as error:
        sys.exit(str(error))
