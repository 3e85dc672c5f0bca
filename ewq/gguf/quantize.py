"""llama.cpp's quantizer: a job as data, its run in a child process, and the child itself.

The quantizer may abort on bad input, so it runs in a child (``python -m ewq.gguf.quantize``) that
reads the job from standard input, passes llama.cpp's log on, and ends with 0 if the file is whole.
"""

import ctypes
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ewq.errors import EwqError
from ewq.gguf.imatrix import read_imatrix
from ewq.gguf.probe import run_child, why_ended
from ewq.progress import NO_PROGRESS, Progress

CHOSEN = re.compile(r"^\[\s*\d+/\s*\d+\]\s+(\S+) .*MiB \((\w+)\)")
STEP = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]\s+(\S+)")
FALLBACK = re.compile(r"warning: (\S+) .*for type\s+(\S+)\) .*-> falling back to")


@dataclass(frozen=True)
class QuantizeJob:
    """One run of llama.cpp's quantizer."""

    source: Path
    out: Path
    type_name: str
    """llama.cpp's recipe: ``Q8_0``, ``Q4_K_M``, ... What ``types`` leaves open follows it."""
    types: Mapping[str, str] = field(default_factory=dict)
    """Tensor name -> ggml type, exact."""
    imatrix: Path | None = None
    requantize: bool = False
    dry_run: bool = False


@dataclass
class Heard:
    """What a run said."""

    fallbacks: dict[str, str] = field(default_factory=dict)
    """Tensor name -> the type asked for, of those that could not be stored in it."""
    chosen: dict[str, str] = field(default_factory=dict)
    """Of a dry run: tensor name -> ggml type, of those that would change."""
    last: str = ""
    """The tensor it was at."""


def as_command(job: QuantizeJob) -> str:
    """The job as a shell command for llama.cpp's own program, one option a line."""
    lines = [["llama-quantize"], *[["--allow-requantize"]] * job.requantize]
    if job.imatrix:
        lines.append(["--imatrix", str(job.imatrix)])
    lines += [
        ["--tensor-type", f"{exact_pattern(tensor)}={type_name.lower()}"]
        for tensor, type_name in job.types.items()
    ]
    lines.append([str(job.source), str(job.out), job.type_name])
    return " \\\n  ".join(map(shlex.join, lines))


def exact_pattern(tensor: str) -> str:
    """A regular expression for this tensor alone: unanchored, ``blk.1`` would match ``blk.10``."""
    return f"^{re.escape(tensor)}$"


def recipe_types(source: Path, type_name: str) -> Mapping[str, str]:
    """The type of every tensor that one of llama.cpp's recipes changes; EwqError of an unknown."""
    job = QuantizeJob(source, source, type_name, requantize=True, dry_run=True)
    return run_quantizer(job).chosen


def run_quantizer(job: QuantizeJob, progress: Progress = NO_PROGRESS) -> Heard:
    """Run a job; an EwqError says why llama.cpp refused or aborted."""
    command, heard = [sys.executable, "-m", "ewq.gguf.quantize"], Heard()
    given = json.dumps(asdict(job), default=str)
    try:
        status, said = run_child(command, partial(_hear, heard, progress), given)
    finally:
        progress.finish()
    if status:
        why = why_ended(status, said)
        raise EwqError(f"llama.cpp could not quantize {heard.last or job.source}: {why}")
    return heard


def _hear(heard: Heard, progress: Progress, line: str) -> bool:
    if match := CHOSEN.match(line):
        heard.chosen[match[1]] = match[2].upper()
    elif match := STEP.match(line):
        if match[1] == "1":
            progress.start("quantizing", int(match[2]), "tensors")
        progress.advance(1)
        heard.last = match[3]
    elif match := FALLBACK.search(line):
        heard.fallbacks[match[1]] = match[2].upper()
    return match is not None


def main(job: QuantizeJob) -> int:
    """The child's work: run the job; its exit status."""
    from ewq.gguf.llama_native import llama_library

    library = llama_library()
    callback = library.llama_log_callback(_report)
    library.llama_log_set(callback, ctypes.c_void_p(0))
    params = library.llama_model_quantize_default_params()
    recipe = f"LLAMA_FTYPE_{'ALL' if job.type_name == 'F32' else 'MOSTLY'}_{job.type_name}"
    params.ftype = getattr(library, recipe)
    params.allow_requantize = job.requantize
    params.dry_run = job.dry_run
    kept: list[Any] = [callback, _set_types(library, params, job.types)]
    if job.imatrix:
        kept.append(_set_imatrix(library, params, job.imatrix))
    source, out = os.fsencode(job.source), os.fsencode(job.out)
    return int(library.llama_model_quantize(source, out, ctypes.byref(params)))


def _report(_level: int, text: bytes, _user_data: Any) -> None:
    sys.stdout.write(text.decode("utf-8", errors="replace"))
    sys.stdout.flush()


def _set_types(library: Any, params: Any, types: Mapping[str, str]) -> Any:
    """Tell llama.cpp exact types; what is returned must live as long as ``params``."""
    from gguf import GGMLQuantizationType

    # The array ends with an entry whose pattern is null; ctypes zeroes it.
    entries = (library.llama_model_tensor_override * (len(types) + 1))()
    for entry, (tensor, name) in zip(entries, types.items(), strict=False):
        entry.pattern = exact_pattern(tensor).encode()
        entry.type = GGMLQuantizationType[name]
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


if __name__ == "__main__":
    data: dict[str, Any] = json.load(sys.stdin)
    paths = {key: Path(data[key]) for key in ("source", "out", "imatrix") if data[key]}
    try:
        sys.exit(main(QuantizeJob(**data | paths)))
    except EwqError as error:
        sys.exit(str(error))
