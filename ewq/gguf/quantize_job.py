"""What llama.cpp's quantizer is asked to do, as data: run by a child, or printed as a command."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


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
    threads: int = 0
    """0: as many as there are."""

    def to_json(self) -> str:
        """For the child's standard input."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> QuantizeJob:
        """The child's side of :meth:`to_json`."""
        data: dict[str, Any] = json.loads(text)
        for key in ("source", "out", "imatrix"):
            data[key] = Path(data[key]) if data[key] else None
        return cls(**data)


def exact_pattern(tensor: str) -> str:
    """A regular expression that matches this tensor's name and no other.

    The quantizer searches, so an unanchored ``blk.1`` would also match ``blk.10``.
    """
    return f"^{re.escape(tensor)}$"


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
