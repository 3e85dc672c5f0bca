"""Running llama.cpp's quantizer in a child process and hearing what it did."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

from ewq.errors import EwqError
from ewq.gguf.probe import abort_reason
from ewq.gguf.quantize_job import QuantizeJob
from ewq.progress import NO_PROGRESS, Progress


@dataclass(frozen=True)
class Fallback:
    """A tensor that llama.cpp could not store in the type asked for."""

    tensor: str
    wanted: str
    stored: str


def run_quantizer(job: QuantizeJob, progress: Progress = NO_PROGRESS) -> tuple[Fallback, ...]:
    """Run a job; the output file is whole when this returns.

    Returns:
        The tensors whose type llama.cpp changed because their rows do not divide.

    Raises:
        EwqError: llama.cpp refused or aborted; one line says why.
    """
    command = [sys.executable, "-m", "ewq.gguf.quantize_child"]
    fallbacks: list[Fallback] = []
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as child:
        try:
            _give(child, job)
            _follow(child, progress, fallbacks)
        except BaseException:
            child.kill()
            raise
        finally:
            progress.finish()
        said = child.stderr.read() if child.stderr else ""
    if child.returncode:
        raise EwqError(_reason(job, child.returncode, said))
    return tuple(fallbacks)


def _give(child: subprocess.Popen[str], job: QuantizeJob) -> None:
    assert child.stdin is not None
    child.stdin.write(job.to_json())
    child.stdin.close()


def _follow(child: subprocess.Popen[str], progress: Progress, fallbacks: list[Fallback]) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        word, *rest = line.split()
        if word == "FALLBACK":
            fallbacks.append(Fallback(rest[0], rest[1].upper(), rest[2].upper()))
        elif word == "PROGRESS" and rest[0] == "1":
            progress.start("quantizing", int(rest[1]), "tensors")
        if word == "PROGRESS":
            progress.advance(1)


def _reason(job: QuantizeJob, status: int, said: str) -> str:
    if status < 0:
        return f"llama.cpp aborted while quantizing {job.source}: {abort_reason(status, said)}"
    lines = said.strip().splitlines()
    return lines[-1] if lines else f"llama.cpp could not quantize {job.source}"
