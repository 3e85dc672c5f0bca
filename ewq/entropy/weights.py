"""All weights of a checkpoint, measured on all processors while the next ones are read.

Values come a window of rows at a time: memory is bounded by the number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from threading import Event
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ewq.checkpoint.layout import Layout, Weight, scale_of
from ewq.checkpoint.opening import Checkpoint
from ewq.checkpoint.tensors import TensorInfo, as_torch, dequantized, map_bytes, read_ahead
from ewq.entropy import WeightStatistics
from ewq.entropy.statistics import (
    NotFiniteError,
    UnmeasurableError,
    Values,
    chunks,
    measure_floats,
    measure_patterns,
    values_of_patterns,
)
from ewq.errors import CheckpointError
from ewq.instruments.gpu import check_device
from ewq.instruments.processor_wait import usable_cores
from ewq.progress import NO_PROGRESS, Progress, step

T = TypeVar("T")
FP8_TILE = (128, 128)
KEPT_BYTES = 64 * 2**20
"""Smaller weights are dequantised once for both passes instead of once for each."""
ROUNDED_VALUES = 2**20
"""Rounded at a time."""
WINDOW_BYTES = 16 * 2**20
ROW_STEP = 64
"""Windows start at multiples of this, so that NF4's blocks of 64 never straddle two."""
SEEN_AS = {"F64": np.float64, "F32": np.float32, "F16": np.uint16, "BF16": np.uint16}
"""16-bit floats are looked at as bit patterns."""
FP8 = ("F8_E4M3", "F8_E5M2")


def measure_weights(
    checkpoint: Checkpoint, layout: Layout, progress: Progress, device: str | None
) -> dict[str, WeightStatistics]:
    """Statistics of every weight by name, in block order; arguments as for ``analyze``.

    A CheckpointError of a weight that is empty, holds NaN or infinity, or is not floating point; a
    BackendUnavailable where there is no such ``device``.
    """
    if device is not None:
        check_device(device)
    reader = _Reader(checkpoint)

    def measure(weight: Weight) -> WeightStatistics:
        dtype = reader.dtype(weight)
        try:
            if SEEN_AS.get(dtype) is np.uint16:
                return measure_patterns(reader.parts(weight), dtype, device)
            if 4 * weight.numel > KEPT_BYTES:
                return measure_floats(lambda: reader.parts(weight), weight.in_features)
            kept = list(reader.parts(weight))
            return measure_floats(lambda: kept, weight.in_features)
        except NotFiniteError:
            found, what = reader.not_finite(weight), "holds NaN or infinity"
        except UnmeasurableError as error:
            found, what = weight.name, str(error)
        raise CheckpointError(f"{found} of {checkpoint.model} {what}; no plan can be made")

    return _on_all_processors(measure, "analyse", reader, layout, progress)


def measure_nf4_errors(
    checkpoint: Checkpoint, layout: Layout, statistics: Mapping[str, WeightStatistics]
) -> dict[str, float]:
    """``|W - NF4(W)| / |W|`` of every weight in Frobenius norms, blocks of 64 along output rows.

    ``statistics`` are the results of :func:`measure_weights`.
    """
    reader = _Reader(checkpoint)

    def measure(weight: Weight) -> float:
        dtype = reader.dtype(weight)
        parts = chunks(reader.parts(weight), ROUNDED_VALUES)
        square = math.fsum(_nf4_square_error(part, dtype) for part in parts)
        norm = statistics[weight.name].square_norm
        return math.sqrt(square / norm) if norm > 0 else 0.0

    return _on_all_processors(measure, "round to NF4", reader, layout)


def _nf4_square_error(part: Values, dtype: str) -> float:
    is_pattern = part.dtype == np.uint16
    values = values_of_patterns(dtype)[part] if is_pattern else part.astype(np.float32)
    return float(np.sum((four_bit(values, "nf4") - values).astype(np.float64) ** 2))


def four_bit(values: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
    """Values as they come back from bitsandbytes' ``nf4`` or ``fp4``, a scale for each 64."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(torch.from_numpy(values), quant_type=kind)
    back: NDArray[np.float32] = dequantize_4bit(packed, state).numpy()
    return back


def _on_all_processors(
    measure: Callable[[Weight], T],
    label: str,
    reader: _Reader,
    layout: Layout,
    progress: Progress = NO_PROGRESS,
) -> dict[str, T]:
    def run(weight: Weight) -> T:
        found = measure(weight)
        progress.advance(reader.nbytes(weight))
        return found

    weights = layout.details.values()
    total = sum(map(reader.nbytes, weights))
    with step(progress, label, total, "bytes"), ThreadPoolExecutor(usable_cores()) as executor:
        try:
            return dict(zip(layout.weights, executor.map(run, weights), strict=True))
        finally:
            # Reached by Ctrl-C and errors too: what runs stops at its next part.
            reader.stop.set()


class _Reader:
    """The values of a checkpoint's weights, until ``stop`` is set."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.stop = Event()

    def _stored(self, weight: Weight) -> list[TensorInfo]:
        return [self._checkpoint.tensors[source] for source in weight.sources]

    def nbytes(self, weight: Weight) -> int:
        return sum(info.nbytes for info in self._stored(weight))

    def dtype(self, weight: Weight) -> str:
        """The one floating-point dtype of a weight that has values."""
        dtypes = sorted({info.dtype for info in self._stored(weight)})
        if len(dtypes) > 1:
            raise CheckpointError(f"{weight.name} mixes {' and '.join(dtypes)}")
        if not weight.numel:
            raise CheckpointError(f"{weight.name} of {self._checkpoint.model} has no values at all")
        info = self._stored(weight)[0]
        if not info.packed and info.dtype not in (*SEEN_AS, *FP8):
            raise CheckpointError(
                f"{info.name} is stored as {info.dtype}, not as floating point; "
                "give the model it was quantized from"
            )
        return info.dtype

    def parts(self, weight: Weight) -> Iterator[Values]:
        """The stored tensors of a weight, a window at a time, output rows outermost."""
        for info in self._stored(weight):
            parts = self._windows(info)
            if weight.transposed:
                whole = np.concatenate(list(parts)).reshape(info.shape)
                parts = iter([np.ascontiguousarray(whole.T).reshape(-1)])
            for values in parts:
                if self.stop.is_set():  # another weight failed, or the user interrupted
                    raise CancelledError
                yield values

    def _windows(self, info: TensorInfo) -> Iterator[Values]:
        """In stored order: uint16 patterns of 16-bit floats, else float32 or float64."""
        if info.dtype in FP8:
            yield self._fp8(info)
            return
        columns = info.shape[-1]
        rows = info.numel // columns
        row_bytes = info.nbytes // rows
        held_bytes = 4 * columns if info.packed else row_bytes
        step_rows = max(1, WINDOW_BYTES // held_bytes // ROW_STEP) * ROW_STEP
        for first in range(0, rows, step_rows):
            count = min(step_rows, rows - first)
            read_ahead(info, (first + count) * row_bytes, count * row_bytes)
            data = map_bytes(info, first * row_bytes, count * row_bytes)
            yield dequantized(data, info.dtype) if info.packed else data.view(SEEN_AS[info.dtype])

    def _fp8(self, info: TensorInfo) -> Values:
        """A whole tensor times its scales, which are the config's tiles' where of several."""
        values = as_torch(info).float().reshape(-1, info.shape[-1])
        stored = scale_of(self._checkpoint, info.name)
        if stored is not None:
            quantization = self._checkpoint.config.get("quantization_config") or {}
            tile = quantization.get("weight_block_size") or FP8_TILE
            scales = as_torch(stored).float()
            scales = scales.reshape(-1, scales.shape[-1] if scales.ndim > 1 else 1)
            for axis, size in enumerate(values.shape):
                # Along a side all values share a scale, each has one, or a tile shares it.
                side = {1: size, size: 1}.get(scales.shape[axis], int(tile[axis]))
                if -(-size // side) != scales.shape[axis]:
                    raise CheckpointError(
                        f"{stored.name} has shape {stored.shape}, which does not fit "
                        f"{info.name} {info.shape} in tiles of {tuple(tile)}"
                    )
                scales = scales.repeat_interleave(side, axis).narrow(axis, 0, size)
            values *= scales
        return values.reshape(-1).numpy()

    def not_finite(self, weight: Weight) -> str:
        """The tensor behind a :class:`NotFiniteError`."""
        loaded = ((source, self._checkpoint.load(source)) for source in weight.sources)
        return next((name for name, of in loaded if not of.float().isfinite().all()), weight.name)
