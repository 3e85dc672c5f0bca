"""Child process: one run of llama.cpp's quantizer, which may abort on bad input.

Reads a :class:`ewq.gguf.quantize_job.QuantizeJob` from standard input, reports
``PROGRESS n total`` and ``FALLBACK tensor wanted stored`` lines on standard
output, and ends with status 0 only when llama.cpp says that the file is whole.
"""

from __future__ import annotations

import ctypes
import re
import sys
from typing import Any

from ewq.errors import EwqError, InputError
from ewq.gguf.imatrix import read_imatrix
from ewq.gguf.llama_native import last_message, llama_library, remember
from ewq.gguf.quantize_job import QuantizeJob, exact_pattern

STEP = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]")
FALLBACK = re.compile(r"warning: (\S+) .*for type\s+(\S+)\) -> falling back to\s+(\S+)")


def main(job: QuantizeJob) -> None:
    """Run the job.

    Raises:
        InputError: llama.cpp has no such recipe or type.
        EwqError: llama.cpp gave up; its last error is quoted.
    """
    library = llama_library()
    callback = library.llama_log_callback(_report)
    library.llama_log_set(callback, ctypes.c_void_p(0))
    kept: list[Any] = [callback]
    params = library.llama_model_quantize_default_params()
    params.nthread = job.threads
    params.ftype = _recipe(library, job.type_name)
    params.allow_requantize = job.requantize
    if job.embedding_type:
        params.token_embedding_type = _type(job.embedding_type)
    if job.output_type:
        params.output_tensor_type = _type(job.output_type)
    _set_types(library, params, job, kept)
    if job.imatrix:
        _set_imatrix(library, params, job, kept)
    source, out = str(job.source).encode(), str(job.out).encode()
    if library.llama_model_quantize(source, out, ctypes.byref(params)):
        raise EwqError(f"llama.cpp could not quantize {job.source}: {last_message()}")


_line: list[str] = []
"""Pieces of a log line; llama.cpp sends one line in several calls."""


def _report(level: int, text: bytes, user_data: Any) -> None:  # noqa: ANN401 (C pointer)
    remember(level, text, user_data)
    _line.append(text.decode("utf-8", errors="replace"))
    if not _line[-1].endswith("\n"):
        return
    line = "".join(_line)
    _line.clear()
    if match := STEP.match(line):
        _say("PROGRESS", *match.groups())
    elif match := FALLBACK.search(line):
        _say("FALLBACK", *match.groups())


def _say(*words: str) -> None:
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


def _recipe(library: Any, name: str) -> int:  # noqa: ANN401 (C library)
    key = f"LLAMA_FTYPE_{'ALL' if name == 'F32' else 'MOSTLY'}_{name}"
    value = getattr(library, key, None)
    if value is None:
        raise InputError(f"llama.cpp has no type {name!r}; try F16, BF16, Q8_0, Q6_K or Q4_K_M")
    return int(value)


def _type(name: str) -> int:
    import gguf

    try:
        return int(gguf.GGMLQuantizationType[name])
    except KeyError:
        raise InputError(f"ggml has no type {name!r}; try F16, BF16, Q8_0, Q6_K or Q4_K") from None


def _set_types(library: Any, params: Any, job: QuantizeJob, kept: list[Any]) -> None:  # noqa: ANN401
    # The array ends with an entry whose pattern is null; ctypes zeroes it.
    entries = (library.llama_model_tensor_override * (len(job.types) + 1))()
    for entry, (tensor, name) in zip(entries, job.types.items(), strict=False):
        entry.pattern = exact_pattern(tensor).encode()
        entry.type = _type(name)
    params.tt_overrides = entries
    kept.append(entries)


def _set_imatrix(library: Any, params: Any, job: QuantizeJob, kept: list[Any]) -> None:  # noqa: ANN401
    assert job.imatrix is not None
    importance = read_imatrix(job.imatrix)
    entries = (library.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (tensor, values) in zip(entries, importance.items(), strict=False):
        entry.name = tensor.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = len(values)
    params.imatrix = entries
    kept.extend([entries, importance])


if __name__ == "__main__":
    try:
        main(QuantizeJob.from_json(sys.stdin.read()))
    except EwqError as error:
        sys.exit(str(error))
