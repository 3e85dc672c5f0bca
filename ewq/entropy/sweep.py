"""All weights of a checkpoint, measured on all processors while the next ones are read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np

from ewq.checkpoint.layout import Layout, Weight, scale_of
from ewq.checkpoint.opening import Checkpoint
from ewq.entropy.chunks import Piece
from ewq.entropy.device import check_device, measure_patterns_on
from ewq.entropy.distribution import UnmeasurableError
from ewq.entropy.measure import NotFiniteError, measure_floats, measure_patterns
from ewq.entropy.statistics import WeightStatistics
from ewq.entropy.windows import Scaling, windows
from ewq.errors import CheckpointError, InputError
from ewq.progress import Progress

FP8_TILE = (128, 128)
KEPT_BYTES = 64 * 2**20
"""Smaller weights are dequantised once for both passes instead of once for each."""
SIXTEEN_BITS = ("BF16", "F16")


def sweep(
    checkpoint: Checkpoint,
    layout: Layout,
    progress: Progress,
    workers: int | None = None,
    device: str | None = None,
) -> dict[str, WeightStatistics]:
    """Statistics of every weight, by name in block order.

    Raises:
        CheckpointError: a weight is empty, holds NaN or infinity, or is not floating point.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}; it takes at least one")
    if device is not None:
        check_device(device)
    jobs = _Jobs(checkpoint, progress, device)
    weights = list(layout.details.values())
    progress.start("analyse", sum(jobs.nbytes(weight) for weight in weights), "bytes")
    executor = ThreadPoolExecutor(workers or _processors())
    try:
        return dict(zip(layout.weights, executor.map(jobs.run, weights), strict=True))
    finally:
        # Reached by Ctrl-C and errors too: what runs stops at its next tensor.
        jobs.stop.set()
        executor.shutdown(cancel_futures=True)
        progress.finish()


def _processors() -> int:
    """Processors this process may use; not every system can tell them from those there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class StoppedError(Exception):
    """Another weight failed, or the user interrupted."""


class _Jobs:
    def __init__(self, checkpoint: Checkpoint, progress: Progress, device: str | None) -> None:
        self._checkpoint = checkpoint
        self._progress = progress
        self._device = device
        self.stop = Event()

    def nbytes(self, weight: Weight) -> int:
        return sum(self._checkpoint.tensors[source].nbytes for source in weight.sources)

    def run(self, weight: Weight) -> WeightStatistics:
        dtypes = {self._checkpoint.tensors[source].dtype for source in weight.sources}
        dtype = dtypes.pop()
        if dtypes:
            raise CheckpointError(f"{weight.name} mixes {dtype} with {', '.join(dtypes)}")
        if not weight.numel:
            raise CheckpointError(f"{weight.name} of {self._checkpoint.model} has no values at all")
        try:
            statistics = self._measure(weight, dtype)
        except NotFiniteError:
            raise CheckpointError(self._name_not_finite(weight)) from None
        except UnmeasurableError as error:
            raise CheckpointError(
                f"{weight.name} of {self._checkpoint.model} {error}; no plan can be made"
            ) from None
        self._progress.advance(self.nbytes(weight))
        return statistics

    def _measure(self, weight: Weight, dtype: str) -> WeightStatistics:
        if dtype in SIXTEEN_BITS and self._device is not None:
            return measure_patterns_on(self._device, self._pieces(weight), dtype)
        if dtype in SIXTEEN_BITS:
            return measure_patterns(self._pieces(weight), dtype)
        if 4 * weight.numel <= KEPT_BYTES:
            kept = list(self._pieces(weight))
            return measure_floats(lambda: kept)
        return measure_floats(lambda: self._pieces(weight))

    def _pieces(self, weight: Weight) -> Iterator[Piece]:
        """The stored tensors of a weight, one mapped at a time, output rows outermost."""
        for source in weight.sources:
            info = self._checkpoint.tensors[source]
            parts = windows(info, self._scaling(source))
            if weight.transposed:
                whole = np.concatenate(list(parts)).reshape(info.shape)
                parts = iter([np.ascontiguousarray(whole.T).reshape(-1)])
            for values in parts:
                if self.stop.is_set():
                    raise StoppedError
                yield Piece(values, weight.in_features)

    def _scaling(self, source: str) -> Scaling | None:
        factors = scale_of(self._checkpoint, source)
        if factors is None:
            return None
        quantization = self._checkpoint.config.get("quantization_config") or {}
        rows, columns = quantization.get("weight_block_size") or FP8_TILE
        return Scaling(factors, (int(rows), int(columns)))

    def _name_not_finite(self, weight: Weight) -> str:
        guilty = [source for source in weight.sources if not self._finite(source)]
        name = guilty[0] if guilty else weight.name
        return f"{name} of {self._checkpoint.model} holds NaN or infinity; no plan can be made"

    def _finite(self, source: str) -> bool:
        import torch

        tensor = self._checkpoint.load(source)
        return bool(torch.isfinite(tensor.float()).all())
