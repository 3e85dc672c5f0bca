"""Where and in which type the models compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ewq.errors import BackendUnavailable
from ewq.instruments.gpu import ALL
from ewq.measurement import Json

BATCH_TOKENS = 8192
"""Tokens of one batch, equal for all variants: its composition moves half-precision results."""


@dataclass(frozen=True)
class Placement:
    """Device, compute dtype and batching: the same for every variant of a run."""

    device: str
    """``cpu``, ``cuda:0`` or, spread over all GPUs, ``cuda:all``."""
    dtype: str
    decode: str = "auto"
    batch_tokens: int = BATCH_TOKENS

    @property
    def settings(self) -> dict[str, Json]:
        """Settings every record has, whatever the task."""
        return {"device": self.device, "dtype": self.dtype, "batch_tokens": self.batch_tokens}


def find_placement(device: str, dtype: str, decode: str, config: Mapping[str, Any]) -> Placement:
    """Resolve ``auto``: CUDA when there is one; the checkpoint's 16-bit type there.

    On a CPU the compute type is float32: 16-bit matrix products are several
    times slower there, and bitsandbytes computes in float32 anyway.

    Raises:
        BackendUnavailable: a CUDA device was asked for and there is none.
    """
    found = find_device(device)
    if dtype == "auto":
        dtype = "float32" if found == "cpu" else _sixteen_bit(config)
    return Placement(found, dtype, decode)


def find_device(asked: str) -> str:
    """The device that ``asked`` means here: ``auto`` is CUDA when there is one.

    Raises:
        BackendUnavailable: a CUDA device was asked for and there is none.
    """
    if asked == "cpu":
        return asked
    import torch

    if torch.cuda.is_available():
        names = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        if asked == ALL and len(names) > 1:
            return ALL
        if asked in ("auto", "cuda", ALL, *names):
            return asked if asked in names else names[0]
    elif asked == "auto":
        return "cpu"
    raise BackendUnavailable(f"--ewq-device {asked}: torch sees no such device; use cpu")


def _sixteen_bit(config: Mapping[str, Any]) -> str:
    declared = str(config.get("dtype") or config.get("torch_dtype") or "")
    return declared if declared in ("float16", "bfloat16") else "bfloat16"
