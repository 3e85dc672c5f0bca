"""Error-compensating rounding (GPTQ, arXiv:2210.17323) into llama.cpp's own types.

Columns are rounded one after the other, and what rounding a column does to the layer's outputs is
made up for by those that come later, as the inputs' second moments ``X X^T`` tell. Scales and
offsets of a block stay ggml's own; only the codes of its values are chosen here. Which bits those
are is found by flipping each bit of a block, so no type's layout is written down.
"""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ewq.checkpoint.gguf_header import GgufHeader
from ewq.checkpoint.layout import find_layout
from ewq.checkpoint.opening import Checkpoint
from ewq.entropy.statistics import Array, compiled
from ewq.gguf.convert import CONVERTED_TYPES
from ewq.gguf.recipe import TensorNames
from ewq.gguf.rounding import Values, block_size, pack, unpack
from ewq.progress import Progress, step
from ewq.sensitivity.calibration import Calibration

Bytes = NDArray[np.uint8]

DAMPING = 0.01
"""Added to the diagonal of the second moments, as a share of its mean; GPTQ's own default."""
FLOOR = 1e-4
"""Least importance of a column, as a share of the mean."""
ROWS = 512
CODED = frozenset(
    {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "IQ4_XS"}
    | {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}
)
"""Types whose values have codes of their own; of others ggml rounds a whole block."""


MOMENTS_BYTES = 2 * 2**30
"""Most bytes of second moments at a time; matrices beyond wait for another pass over the text."""


def recode(
    checkpoint: Checkpoint,
    calibration: Calibration,
    progress: Progress,
    path: Path,
    source: GgufHeader,
) -> tuple[str, ...]:
    """Round the matrices of ``path``, just made from ``source``, again, in place; returns notes."""
    import gguf

    from ewq.sensitivity.measure import load_model

    model = load_model(checkpoint, "cpu", "float32")
    before = {tensor.name: tensor for tensor in gguf.GGUFReader(source.path).tensors}
    made = gguf.GGUFReader(path, "r+")
    quantized = {
        tensor.name: tensor
        for tensor in made.tensors
        if tensor.tensor_type.name not in CONVERTED_TYPES
    }
    names = TensorNames(source)
    weights = find_layout(checkpoint).details.values()
    columns = {weight.name: weight.in_features for weight in weights if not weight.expert}
    # The head, which may be the embedding, is no weight of a block.
    head = model.get_output_embeddings().weight
    columns |= {name: head.shape[1] for name, own in model.named_parameters() if own is head}
    for name, moments in _moments(model, calibration, columns, progress):
        for tensor in names.of_weight(name):
            if tensor in quantized:
                old, new = before[tensor], quantized[tensor]
                values = gguf.quants.dequantize(old.data, old.tensor_type)
                new.data[...] = round_matrix(values, moments, new.tensor_type.name)
    made.data.flush()
    experts = sum(weight.expert for weight in weights)
    return (f"{experts} stacks of experts keep ggml's own rounding",) if experts else ()


def _moments(
    model: Any, calibration: Calibration, columns: Mapping[str, int], progress: Progress
) -> Iterator[tuple[str, Any]]:
    from ewq.sensitivity.gradients import SecondMoments

    for group in _groups(columns):
        moments = SecondMoments(model, group)
        reading = "reading what the matrices read"
        with step(progress, reading, calibration.tokens, "tokens") as advance:
            for ids in calibration.sequences:
                moments.add(ids)
                advance(len(ids))
        with step(progress, "rounding", len(group), "matrices") as advance:
            for found in moments.means().items():
                yield found
                advance(1)


def _groups(columns: Mapping[str, int]) -> Iterator[list[str]]:
    group: list[str] = []
    free = MOMENTS_BYTES
    for name, count in columns.items():
        nbytes = 4 * count**2
        if group and nbytes > free:
            yield group
            group, free = [], MOMENTS_BYTES
        group.append(name)
        free -= nbytes
    if group:
        yield group


def round_matrix(weight: Values, moments: Values, type_name: str) -> Bytes:
    """``weight``, ``[rows, columns]``, in a ggml type, ``[rows, bytes of a row]``, so that products
    with inputs change little whose mean of ``x x^T`` over tokens is ``moments``."""
    factor = _inverse_factor(moments)
    mean = moments.diagonal().mean() or 1.0
    importance = np.maximum(moments.diagonal(), FLOOR * mean)
    parts = [weight[first : first + ROWS] for first in range(0, len(weight), ROWS)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        done = threads.map(lambda part: _round_rows(part, factor, importance, type_name), parts)
        return np.concatenate(list(done))


def _inverse_factor(moments: Values) -> Values:
    """Upper ``U`` with ``U^T U`` the inverse of the damped moments."""
    damped = moments.astype(np.float64)
    diagonal = np.einsum("ii->i", damped)
    mean = diagonal.mean() or 1.0
    diagonal[diagonal == 0] = mean  # columns that were never used
    diagonal += DAMPING * mean
    # A Cholesky factor of the matrix read backwards is upper and needs no inverse of its own.
    backwards = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    return np.ascontiguousarray(np.linalg.inv(backwards), dtype=np.float32)


def _round_rows(weight: Values, factor: Values, importance: Values, type_name: str) -> Bytes:
    values, block = weight.astype(np.float32), block_size(type_name)
    stored = []
    for first in range(0, values.shape[1], block):
        here, later = slice(first, first + block), slice(first + block, None)
        part = np.ascontiguousarray(values[:, here])
        packed = pack(part, type_name, importance[here])
        corner = np.ascontiguousarray(factor[here, here])
        if type_name in CODED:
            codes = codes_of(type_name)
            low = codes.filled(packed, codes.order[0])
            span = codes.filled(packed, codes.order[-1]) - low
            chosen, errors = np.empty(part.shape, np.uint8), np.empty_like(part)
            _compensate(part, corner, low, span, codes.levels, chosen, errors)
            packed = codes.put(packed, codes.order[chosen])
        else:
            errors = (part - unpack(packed, type_name)) @ np.linalg.inv(corner)
        values[:, later] -= errors @ factor[here, later]
        stored.append(packed)
    return np.concatenate(stored, axis=1)


@dataclass(frozen=True)
class Codes:
    """Where a type keeps the codes of a block's values, and what they stand for."""

    type_name: str
    places: NDArray[np.int64]
    """``[values, bits]``: positions of the bits of each value's code in the block."""
    order: NDArray[np.uint8]
    """``[2^bits]``: codes by rising share of the way from the first's value to the last's."""
    levels: Values
    """``[2^bits]``: these shares, from 0 to 1."""

    def put(self, packed: Bytes, codes: Bytes) -> Bytes:
        """Blocks with other codes ``[rows, values]`` and the scales they had."""
        bits = np.unpackbits(packed, axis=1, bitorder="little")
        for number, places in enumerate(self.places.T):
            bits[:, places] = codes >> number & 1
        return np.packbits(bits, axis=1, bitorder="little")

    def filled(self, packed: Bytes, code: int) -> Values:
        """Values of blocks whose codes are all the same."""
        codes = np.full((len(packed), len(self.places)), code, dtype=np.uint8)
        return unpack(self.put(packed, codes), self.type_name)


@cache
def codes_of(type_name: str) -> Codes:
    """Find the codes of a type by flipping bits of one block of noise."""
    noise = np.random.default_rng(0).standard_normal((1, block_size(type_name)))
    block = pack(noise.astype(np.float32), type_name)
    flipped = np.unpackbits(np.repeat(block, 8 * block.size, axis=0), axis=1, bitorder="little")
    np.einsum("ii->i", flipped)[...] ^= 1
    values = unpack(np.packbits(flipped, axis=1, bitorder="little"), type_name)
    changes = values != unpack(block, type_name)
    own = np.flatnonzero(changes.sum(axis=1) == 1)
    value_of = changes[own].argmax(axis=1)
    places = own[np.argsort(value_of, kind="stable")].reshape(noise.size, -1)
    bare = Codes(type_name, places, np.empty(0, np.uint8), np.empty(0, np.float32))
    every = np.stack([bare.filled(block, code)[0] for code in range(2 ** places.shape[1])])
    widest = every[:, np.ptp(every, axis=0).argmax()]
    order = widest.argsort(kind="stable")
    levels = (widest[order] - widest.min()) / np.ptp(widest)
    return Codes(type_name, places, order.astype(np.uint8), levels.astype(np.float32))


@compiled
def _compensate(
    values: Array,
    factor: Array,
    low: Array,
    span: Array,
    levels: Array,
    chosen: Array,
    errors: Array,
) -> None:
    """Round ``values`` column by column; ``errors`` is what each column leaves to later blocks."""
    rows, columns = values.shape
    for row in range(rows):
        for column in range(columns):
            value, step = values[row, column], span[row, column]
            best = 0
            if step != 0:
                share = (value - low[row, column]) / step
                best = min(np.searchsorted(levels, share), levels.size - 1)
                if best > 0 and share - levels[best - 1] < levels[best] - share:
                    best -= 1
            stored = low[row, column] + step * levels[best]
            error = (value - stored) / factor[column, column]
            chosen[row, column] = best
            errors[row, column] = error
            for later in range(column + 1, columns):
                values[row, later] -= error * factor[column, later]
