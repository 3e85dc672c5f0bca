"""All weights of a checkpoint, measured on all processors while the next ones are read."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

import numpy as np

from ewq.checkpoint.layout import Layout, Weight, scale_of
from ewq.checkpoint.opening import Checkpoint
from ewq.entropy.measure import (
    NotFiniteError,
    Values,
    measure_floats,
    measure_patterns,
    nf4_square_error,
)
from ewq.entropy.statistics import UnmeasurableError, WeightStatistics
from ewq.entropy.windows import Scaling, windows
from ewq.errors import BackendUnavailable, CheckpointError, InputError
from ewq.progress import NO_PROGRESS, Progress

T = TypeVar("T")

FP8_TILE = (128, 128)
KEPT_BYTES = 64 * 2**20
"""Smaller weights are dequantised once for both passes instead of once for each."""
SIXTEEN_BITS = ("BF16", "F16")


def measure_weights(
    checkpoint: Checkpoint,
    layout: Layout,
    progress: Progress = NO_PROGRESS,
    workers: int | None = None,
    device: str | None = None,
) -> dict[str, WeightStatistics]:
    """Statistics of every weight, by name in block order.

    Args:
        checkpoint: where the weights lie.
        layout: which tensors they are.
        progress: told about bytes read.
        workers: threads; all available processors unless given.
        device: ``cuda`` counts 16-bit patterns on the GPU; the processor unless given.

    Raises:
        CheckpointError: a weight is empty, holds NaN or infinity, or is not floating point.
        InputError: fewer than one worker.
        BackendUnavailable: torch cannot compute on ``device``.
    """
    if device is not None:
        _check_device(device)
    reader = _Reader(checkpoint)

    def measure(weight: Weight) -> WeightStatistics:
        try:
            return _statistics(reader, weight, device)
        except NotFiniteError:
            raise CheckpointError(reader.name_not_finite(weight)) from None
        except UnmeasurableError as error:
            raise CheckpointError(
                f"{weight.name} of {checkpoint.model} {error}; no plan can be made"
            ) from None

    return _on_all_processors(measure, "analyse", reader, layout, progress, workers)


def measure_nf4_errors(
    checkpoint: Checkpoint,
    layout: Layout,
    statistics: Mapping[str, WeightStatistics],
    progress: Progress = NO_PROGRESS,
    workers: int | None = None,
) -> dict[str, float]:
    """``|W - NF4(W)| / |W|`` of every weight in Frobenius norms, blocks of 64 along output rows.

    Arguments and errors are those of :func:`measure_weights`, whose results are ``statistics``.
    """
    reader = _Reader(checkpoint)

    def measure(weight: Weight) -> float:
        square = nf4_square_error(reader.parts(weight), reader.dtype(weight))
        norm = statistics[weight.name].square_norm
        return math.sqrt(square / norm) if norm > 0 else 0.0

    return _on_all_processors(measure, "round to NF4", reader, layout, progress, workers)


def _check_device(name: str) -> None:
    import torch

    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise BackendUnavailable(
            f"cannot count on {name!r} ({reason}); leave --device out"
        ) from error


def _on_all_processors(
    measure: Callable[[Weight], T],
    label: str,
    reader: _Reader,
    layout: Layout,
    progress: Progress,
    workers: int | None,
) -> dict[str, T]:
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}; give at least 1")

    def run(weight: Weight) -> T:
        found = measure(weight)
        progress.advance(reader.nbytes(weight))
        return found

    weights = list(layout.details.values())
    progress.start(label, sum(reader.nbytes(weight) for weight in weights), "bytes")
    executor = ThreadPoolExecutor(workers or _processors())
    try:
        return dict(zip(layout.weights, executor.map(run, weights), strict=True))
    finally:
        # Reached by Ctrl-C and errors too: what runs stops at its next part.
        reader.stop.set()
        executor.shutdown(cancel_futures=True)
        progress.finish()


def _processors() -> int:
    """Processors this process may use; not every system can tell them from those there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _statistics(reader: _Reader, weight: Weight, device: str | None) -> WeightStatistics:
    dtype = reader.dtype(weight)
    if dtype in SIXTEEN_BITS:
        return measure_patterns(reader.parts(weight), dtype, device)
    if 4 * weight.numel <= KEPT_BYTES:
        kept = list(reader.parts(weight))
        return measure_floats(lambda: kept, weight.in_features)
    return measure_floats(lambda: reader.parts(weight), weight.in_features)


class StoppedError(Exception):
    """Another weight failed, or the user interrupted."""


class _Reader:
    """The values of a checkpoint's weights, until ``stop`` is set."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.stop = Event()

    def nbytes(self, weight: Weight) -> int:
        """Stored bytes of a weight."""
        return sum(self._checkpoint.tensors[source].nbytes for source in weight.sources)

    def dtype(self, weight: Weight) -> str:
        """The one dtype of a weight that has values."""
        dtypes = sorted({self._checkpoint.tensors[source].dtype for source in weight.sources})
        if len(dtypes) > 1:
            raise CheckpointError(f"{weight.name} mixes {' and '.join(dtypes)}")
        if not weight.numel:
            raise CheckpointError(f"{weight.name} of {self._checkpoint.model} has no values at all")
        return dtypes[0]

    def parts(self, weight: Weight) -> Iterator[Values]:
        """The stored tensors of a weight, a window at a time, output rows outermost."""
        for source in weight.sources:
            info = self._checkpoint.tensors[source]
            parts = windows(info, self._scaling(source))
            if weight.transposed:
                whole = np.concatenate(list(parts)).reshape(info.shape)
                parts = iter([np.ascontiguousarray(whole.T).reshape(-1)])
            for values in parts:
                if self.stop.is_set():
                    raise StoppedError
                yield values

    def _scaling(self, source: str) -> Scaling | None:
        factors = scale_of(self._checkpoint, source)
        if factors is None:
            return None
        quantization = self._checkpoint.config.get("quantization_config") or {}
        rows, columns = quantization.get("weight_block_size") or FP8_TILE
        return Scaling(factors, (int(rows), int(columns)))

    def name_not_finite(self, weight: Weight) -> str:
        """The tensor behind a :class:`NotFiniteError`, in a sentence."""
        guilty = [source for source in weight.sources if not self._finite(source)]
        name = guilty[0] if guilty else weight.name
        return f"{name} of {self._checkpoint.model} holds NaN or infinity; no plan can be made"

    def _finite(self, source: str) -> bool:
        import torch

        tensor = self._checkpoint.load(source)
        return bool(torch.isfinite(tensor.float()).all())
