"""The expected divergence of storing a tensor in a type, from the real rounding error.

``cost = sum_ij rows_i columns_j (Q(W) - W)_ij^2`` in nats per token, with the weighting of
:meth:`ewq.sensitivity.measure.Sensitivity.weighting`. Of large tensors some rows are drawn, each
with a probability in proportion to its sensitivity, which keeps the sum unbiased (Hansen and
Hurwitz 1943): rows of one tensor differ widely in how much they matter and little in how well
they round.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ewq.fit.stored import StoredMatrix
from ewq.progress import NO_PROGRESS, Progress
from ewq.sensitivity.measure import Sensitivity

Values = NDArray[np.float32]
Floats = NDArray[np.float64]
Rounding = Callable[[Values, str, Values | None], Values]
"""``rounded(values, type, importance)``: rows as they come back from a type."""
ROWS_DRAWN = 256
"""Of each tensor; all of smaller ones."""
ROWS_AT_A_TIME = 64
SEED = 20240


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that a plan gives a type."""

    name: str
    """As in the plan."""
    matrix: StoredMatrix
    types: tuple[str, ...]
    """It may be stored as."""
    sizes: Mapping[str, int]
    """Bytes in each type."""
    block: int | None = None
    """Decoder block; ``None`` for embedding and head."""
    rows: tuple[int, int | None] = (0, None)
    """First and last of each expert's rows in the matrix, where the file keeps them apart."""


@dataclass(frozen=True)
class _Piece:
    """Some rows of one expert, all types of which one thread works out."""

    tensor: PlannedTensor
    expert: int
    rows: NDArray[np.int64]
    weights: Floats
    """Of the rows: their share in the cost of a unit of error."""
    columns: Floats
    importance: Values | None


def measure_costs(
    tensors: Sequence[PlannedTensor],
    sensitivity: Sensitivity,
    rounded: Rounding,
    *,
    rows_drawn: int = ROWS_DRAWN,
    workers: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> dict[str, dict[str, float]]:
    """Nats per token by tensor and type.

    Args:
        tensors: what to store, and as what.
        sensitivity: of the same checkpoint.
        rounded: the real quantizer.
        rows_drawn: most rows of a tensor that are rounded.
        workers: threads; all processors unless given.
        progress: told of tensors' pieces.
    """
    draw = np.random.default_rng(SEED)
    pieces = [p for t in tensors for p in _pieces(t, sensitivity, rows_drawn, draw)]
    costs = {tensor.name: dict.fromkeys(tensor.types, 0.0) for tensor in tensors}
    progress.start("measuring rounding errors", len(pieces), "pieces")
    pool = ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)))
    try:
        for piece, found in zip(
            pieces, pool.map(lambda p: _costs(p, rounded), pieces), strict=True
        ):
            for type_name, cost in found.items():
                costs[piece.tensor.name][type_name] += cost
            progress.advance(1)
    finally:
        pool.shutdown(cancel_futures=True)
        progress.finish()
    return costs


def _pieces(
    tensor: PlannedTensor, sensitivity: Sensitivity, rows_drawn: int, draw: np.random.Generator
) -> Iterator[_Piece]:
    name = tensor.matrix.name
    weights, columns = sensitivity.weighting(name)
    matrix = sensitivity.matrices[name]
    importance = None if matrix.is_lookup else matrix.importance().astype(np.float32)
    inside = np.zeros_like(weights)
    mine = slice(*tensor.rows)
    inside[:, mine] = weights[:, mine]
    places, shares = _drawn(inside.ravel(), rows_drawn, draw)
    experts, rows = np.divmod(places, weights.shape[1])
    for expert in np.unique(experts):
        of_expert = np.flatnonzero(experts == expert)
        for first in range(0, len(of_expert), ROWS_AT_A_TIME):
            some = of_expert[first : first + ROWS_AT_A_TIME]
            used = None if importance is None else importance[expert]
            yield _Piece(tensor, int(expert), rows[some], shares[some], columns[expert], used)


def _drawn(
    weights: Floats, most: int, draw: np.random.Generator
) -> tuple[NDArray[np.int64], Floats]:
    """Places and weights: all that count, or a systematic sample in proportion to the weights."""
    counting = np.flatnonzero(weights)
    if len(counting) <= most:
        return counting, weights[counting]
    ends = np.cumsum(weights[counting])
    marks = (draw.random() + np.arange(most)) * ends[-1] / most
    hit, times = np.unique(np.searchsorted(ends, marks, side="right"), return_counts=True)
    return counting[np.minimum(hit, len(counting) - 1)], times * ends[-1] / most


def _costs(piece: _Piece, rounded: Rounding) -> dict[str, float]:
    values = piece.tensor.matrix.read(piece.expert, piece.rows)
    found = {}
    for type_name in piece.tensor.types:
        error = (rounded(values, type_name, piece.importance) - values).astype(np.float64)
        found[type_name] = float(piece.weights @ (np.square(error) @ piece.columns))
    return found
