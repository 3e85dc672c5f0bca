"""The identity of a checkpoint: names, shapes, config, and content sampled in every tensor.

Hashing whole files would cost more than analysing them. Every training step,
merge, cast or requantization changes practically every tensor everywhere, so
a few pages of each tensor tell checkpoints apart; tensors up to 64 KiB are
hashed whole. Sharding does not matter. The analysis cache adds the files'
sizes and times, so a surgical edit between the sampled pages never meets a
stale analysis (:mod:`ewq.planning.analysis_cache`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ewq.checkpoint.tensors import TensorInfo
from ewq.errors import CheckpointError

WHOLE_BYTES = 64 * 1024
SAMPLE_BYTES = 4096
SAMPLES = 4
NOT_THE_MODEL = frozenset({"transformers_version", "_name_or_path", "torch_dtype", "dtype"})
"""Config keys that loading and saving rewrite; dtypes are hashed from the tensors themselves."""


def fingerprint_of(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> str:
    """``sha256:...`` of a checkpoint.

    Raises:
        CheckpointError: a file cannot be read, or is shorter than its header says.
    """
    digest = hashlib.sha256(_canonical(config))
    with ExitStack() as stack:
        descriptors: dict[Path, int] = {}
        for name in sorted(tensors):
            info = tensors[name]
            if info.file not in descriptors:
                descriptors[info.file] = _open(info.file, stack)
            digest.update(f"\0{name}\0{info.dtype}\0{info.shape}\0".encode())
            for offset, length in _samples(info):
                digest.update(_read(descriptors[info.file], offset, length, info))
    return "sha256:" + digest.hexdigest()


def _canonical(config: Mapping[str, Any]) -> bytes:
    kept = {key: value for key, value in config.items() if key not in NOT_THE_MODEL}
    return json.dumps(kept, sort_keys=True, separators=(",", ":"), default=str).encode()


def _samples(info: TensorInfo) -> Iterator[tuple[int, int]]:
    """``(offset, length)`` of what is hashed: first, last and evenly between."""
    if info.nbytes <= WHOLE_BYTES:
        yield info.offset, info.nbytes
        return
    for index in range(SAMPLES):
        yield info.offset + (info.nbytes - SAMPLE_BYTES) * index // (SAMPLES - 1), SAMPLE_BYTES


def _open(path: Path, stack: ExitStack) -> int:
    try:
        return stack.enter_context(path.open("rb", buffering=0)).fileno()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _read(descriptor: int, offset: int, length: int, info: TensorInfo) -> bytes:
    data = os.pread(descriptor, length, offset)
    if len(data) != length:
        raise CheckpointError(f"{info.file} ends inside {info.name}; download it again")
    return data
