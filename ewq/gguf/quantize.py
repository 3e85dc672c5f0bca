"""llama.cpp's quantizer: a job as data, its run in a child process, and the child itself.

The quantizer may abort on bad input, so it runs in a child (``python -m ewq.gguf.quantize``) that
reads the job from standard input, reports ``PROGRESS n total`` and ``FALLBACK tensor wanted
stored`` (of a dry run ``CHOSEN tensor type``) lines on standard output, and ends with status 0
only when the file is whole.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ewq.errors import EwqError, InputError
from ewq.gguf.imatrix import read_imatrix
from ewq.gguf.probe import why_ended
from ewq.progress import NO_PROGRESS, Progress

CHOSEN = re.compile(r"^\[\s*\d+/\s*\d+\]\s+(\S+) .*MiB \((\w+)\)")
STEP = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]\s+(\S+)")
FALLBACK = re.compile(r"warning: (\S+) .*for type\s+(\S+)\) .*-> falling back to\s+(\S+)")


@dataclass(frozen=True)
class QuantizeJob:
    """One run of llama.cpp's quantizer."""

    source: Path
    out: Path
    type_name: str
    """llama.cpp's recipe: ``Q8_0``, ``Q4_K_M``, ... What ``types`` leaves open follows it."""
    types: Mapping[str, str] = field(default_factory=dict)
    """Tensor name -> ggml type, exact."""
    embedding_type: str | None = None
    output_type: str | None = None
    imatrix: Path | None = None
    requantize: bool = False
    """Whether tensors that are quantized already may be quantized again."""
    dry_run: bool = False
    """Only report what type each tensor would take."""


@dataclass(frozen=True)
class Fallback:
    """A tensor that llama.cpp could not store in the type asked for."""

    tensor: str
    wanted: str
    stored: str


def as_command(job: QuantizeJob, program: str = "llama-quantize") -> str:
    """The job as a shell command for llama.cpp's own program, one option a line."""
    options = [["--allow-requantize"]] if job.requantize else []
    if job.imatrix:
        options.append(["--imatrix", str(job.imatrix)])
    if job.embedding_type:
        options.append(["--token-embedding-type", job.embedding_type.lower()])
    if job.output_type:
        options.append(["--output-tensor-type", job.output_type.lower()])
    for tensor, type_name in job.types.items():
        options.append(["--tensor-type", f"{exact_pattern(tensor)}={type_name.lower()}"])
    words = [[program], *options, [str(job.source), str(job.out), job.type_name]]
    return " \\\n  ".join(shlex.join(line) for line in words)


def exact_pattern(tensor: str) -> str:
    """A regular expression that matches this tensor's name and no other.

    The quantizer searches, so an unanchored ``blk.1`` would also match ``blk.10``.
    """
    return f"^{re.escape(tensor)}$"


def recipe_types(source: Path, type_name: str, imatrix: Path | None = None) -> dict[str, str]:
    """The type of every tensor that one of llama.cpp's recipes changes, without writing a file.

    Raises:
        EwqError: llama.cpp has no such recipe.
    """
    job = QuantizeJob(source, source, type_name, imatrix=imatrix, requantize=True, dry_run=True)
    return run_quantizer(job)[1]


def run_quantizer(
    job: QuantizeJob, progress: Progress = NO_PROGRESS
) -> tuple[tuple[Fallback, ...], dict[str, str]]:
    """Run a job; the output file is whole when this returns.

    Returns:
        The tensors whose type llama.cpp changed because their rows do not divide, and the types
        that a dry run chose.

    Raises:
        EwqError: llama.cpp refused or aborted; one line says why.
    """
    command = [sys.executable, "-m", "ewq.gguf.quantize"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as child:
        assert child.stdin is not None
        assert child.stderr is not None
        try:
            child.stdin.write(json.dumps(asdict(job), default=str))
            child.stdin.close()
            heard = _follow(child, progress)
        except BaseException:
            child.kill()
            raise
        finally:
            progress.finish()
        said = child.stderr.read()
    if child.returncode:
        why = why_ended(child.returncode, said)
        aborted = f"llama.cpp aborted while quantizing {job.source}: "
        raise EwqError(f"{aborted if child.returncode < 0 else ''}{why}")
    return heard


def _follow(
    child: subprocess.Popen[str], progress: Progress
) -> tuple[tuple[Fallback, ...], dict[str, str]]:
    assert child.stdout is not None
    fallbacks: list[Fallback] = []
    chosen: dict[str, str] = {}
    for line in child.stdout:
        word, *rest = line.split()
        if word == "FALLBACK":
            fallbacks.append(Fallback(rest[0], rest[1].upper(), rest[2].upper()))
        elif word == "CHOSEN":
            chosen[rest[0]] = rest[1].upper()
        elif word == "PROGRESS" and rest[0] == "1":
            progress.start("quantizing", int(rest[1]), "tensors")
        if word == "PROGRESS":
            progress.advance(1)
    return tuple(fallbacks), chosen


def main(job: QuantizeJob) -> None:
    """The child's work: run the job.

    Raises:
        InputError: llama.cpp has no such recipe or type.
        EwqError: llama.cpp gave up; its last error is quoted.
    """
    from ewq.gguf.llama_native import llama_library, logged_error

    library = llama_library()
    callback = library.llama_log_callback(_report)
    library.llama_log_set(callback, ctypes.c_void_p(0))
    params = library.llama_model_quantize_default_params()
    params.ftype = _recipe_number(library, job.type_name)
    params.allow_requantize = job.requantize
    params.dry_run = job.dry_run
    if job.embedding_type:
        params.token_embedding_type = _type_number(job.embedding_type)
    if job.output_type:
        params.output_tensor_type = _type_number(job.output_type)
    kept: list[Any] = [callback, _set_types(library, params, job.types)]
    if job.imatrix:
        kept.append(_set_imatrix(library, params, job.imatrix))
    source, out = os.fsencode(job.source), os.fsencode(job.out)
    if library.llama_model_quantize(source, out, ctypes.byref(params)):
        raise EwqError(f"llama.cpp could not quantize {_begun[-1]}: {logged_error()}")


_line: list[str] = []
"""Parts of a log line; llama.cpp sends one line in several calls."""
_begun: list[str] = ["the file"]
"""Tensors, in the order in which llama.cpp turned to them."""


def _report(level: int, text: bytes, user_data: Any) -> None:
    from ewq.gguf.llama_native import remember

    remember(level, text, user_data)
    _line.append(text.decode("utf-8", errors="replace"))
    if match := STEP.match("".join(_line)):
        _begun.append(match[3])
    if not _line[-1].endswith("\n"):
        return
    line = "".join(_line)
    _line.clear()
    if match := CHOSEN.match(line):
        _say("CHOSEN", *match.groups())
    elif match := STEP.match(line):
        _say("PROGRESS", match[1], match[2])
    elif match := FALLBACK.search(line):
        _say("FALLBACK", *match.groups())


def _say(*words: str) -> None:
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


def _recipe_number(library: Any, name: str) -> int:
    key = f"LLAMA_FTYPE_{'ALL' if name == 'F32' else 'MOSTLY'}_{name}"
    value = getattr(library, key, None)
    if value is None:
        raise InputError(f"llama.cpp has no type {name!r}; try F16, BF16, Q8_0, Q6_K or Q4_K_M")
    return int(value)


def _type_number(name: str) -> int:
    import gguf

    try:
        return int(gguf.GGMLQuantizationType[name])
    except KeyError:
        raise InputError(f"ggml has no type {name!r}; try F16, BF16, Q8_0, Q6_K or Q4_K") from None


def _set_types(library: Any, params: Any, types: Mapping[str, str]) -> Any:
    """Tell llama.cpp exact types; what is returned must live as long as ``params``."""
    # The array ends with an entry whose pattern is null; ctypes zeroes it.
    entries = (library.llama_model_tensor_override * (len(types) + 1))()
    for entry, (tensor, name) in zip(entries, types.items(), strict=False):
        entry.pattern = exact_pattern(tensor).encode()
        entry.type = _type_number(name)
    params.tt_overrides = entries
    return entries


def _set_imatrix(library: Any, params: Any, path: Path) -> Any:
    """Tell llama.cpp importances; what is returned must live as long as ``params``."""
    importance = read_imatrix(path)
    entries = (library.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (tensor, values) in zip(entries, importance.items(), strict=False):
        entry.name = tensor.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = len(values)
    params.imatrix = entries
    return entries, importance


def _job(text: str) -> QuantizeJob:
    data: dict[str, Any] = json.loads(text)
    for key in ("source", "out", "imatrix"):
        data[key] = Path(data[key]) if data[key] else None
    return QuantizeJob(**data)


if __name__ == "__main__":
    try:
        main(_job(sys.stdin.read()))
    except EwqError as error:
        sys.exit(str(error))
