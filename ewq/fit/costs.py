"""The expected divergence of storing a tensor in a type, from the real rounding error.

``cost = sum_ij rows_i columns_j (Q(W) - W)_ij^2`` in nats per token, with the weighting of
:meth:`ewq.sensitivity.measure.Sensitivity.weighting`. Of large tensors some rows are drawn, each
with a probability in proportion to its sensitivity, which keeps the sum unbiased (Hansen and
Hurwitz 1943): rows differ widely in how much they matter and little in how well they round.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ewq.checkpoint.layout import Layout
from ewq.checkpoint.opening import Checkpoint
from ewq.instruments.processor_wait import usable_cores
from ewq.progress import NO_PROGRESS, Progress, step
from ewq.sensitivity.measure import Sensitivity

Values = NDArray[np.float32]
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Rounding = Callable[[Values, str, Values | None], Values]
"""``rounded(values, type, importance)``: rows as they come back from a type."""
ROWS_DRAWN = 256
"""Of each tensor; all of smaller ones."""
ROWS_AT_A_TIME = 64
SEED = 20240


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix of the loaded model, or a stack of experts', as the checkpoint stores it."""

    checkpoint: Checkpoint
    name: str
    """In the loaded model's state dict."""
    parts: tuple[tuple[str, ...], ...]
    """Tensors of the checkpoint by expert; an expert's parts follow one another in its rows."""
    experts: int
    rows: int
    """Of one expert."""
    columns: int
    transposed: bool = False
    """Stored ``[in, out]``."""

    @property
    def numel(self) -> int:
        """Values of all experts."""
        return self.experts * self.rows * self.columns

    def read(self, expert: int, rows: Indices) -> Values:
        """Some rows of one expert, ``[rows, columns]``."""
        import torch

        stack = len(self.parts) == 1 and self.experts > 1
        names = self.parts[0] if stack else self.parts[expert]
        height = self.rows // len(names)
        out = np.empty((len(rows), self.columns), dtype=np.float32)
        for part, name in enumerate(names):
            inside = np.flatnonzero(rows // height == part)
            tensor = self.checkpoint.load(name)
            tensor = tensor[expert] if tensor.ndim == 3 else tensor
            tensor = tensor.T if self.transposed else tensor
            wanted = torch.from_numpy(rows[inside] - part * height)
            out[inside] = tensor[wanted].float().numpy()
        return out


def stored_matrix(checkpoint: Checkpoint, layout: Layout, name: str) -> StoredMatrix | None:
    """Where a matrix of the loaded model lies; ``None`` where the checkpoint has none like it."""
    weight = layout.details.get(name)
    sources = weight.sources if weight else _named_alike(checkpoint, layout, name)
    if not sources:
        return None
    first = checkpoint.tensors[sources[0]]
    transposed = bool(weight and weight.transposed)
    parts = _by_expert(sources) if weight and weight.expert else (sources,)
    experts = first.shape[0] if len(first.shape) == 3 else len(parts)
    rows, columns = first.shape[-2:][::-1] if transposed else first.shape[-2:]
    return StoredMatrix(checkpoint, name, parts, experts, rows * len(parts[0]), columns, transposed)


def _by_expert(sources: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Sources grouped by the expert's number; gate before up, as they are stacked."""
    grouped: dict[int, list[str]] = {}
    for source in sorted(sources, key=lambda name: name.endswith(("up_proj.weight", "w3.weight"))):
        number = re.search(r"experts\.(\d+)\.", source)
        grouped.setdefault(int(number[1]) if number else 0, []).append(source)
    return tuple(tuple(grouped[expert]) for expert in sorted(grouped))


def _named_alike(checkpoint: Checkpoint, layout: Layout, name: str) -> tuple[str, ...]:
    """The tensor outside the blocks whose name ends as this one does, whatever stands before."""
    if name in checkpoint.tensors:
        return (name,)
    ending = "." + ".".join(name.split(".")[-2:])
    inside = {source for weight in layout.details.values() for source in weight.sources}
    found = [n for n in checkpoint.tensors if f".{n}".endswith(ending) and n not in inside]
    return (found[0],) if len(found) == 1 else ()


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


def measure_costs(
    tensors: Sequence[PlannedTensor],
    sensitivity: Sensitivity,
    rounded: Rounding,
    *,
    rows_drawn: int = ROWS_DRAWN,
    workers: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> dict[str, dict[str, float]]:
    """Nats per token by tensor and type, of at most ``rows_drawn`` rows each."""
    draw = np.random.default_rng(SEED)
    pieces = [p for t in tensors for p in _pieces(t, sensitivity, rows_drawn, draw)]
    costs = {tensor.name: dict.fromkeys(tensor.types, 0.0) for tensor in tensors}
    pool = ThreadPoolExecutor(workers or usable_cores())
    with step(progress, "measuring rounding errors", len(pieces), "pieces") as advance, pool:
        for name, found in pool.map(lambda piece: _rounded(rounded, *piece), pieces):
            for type_name, cost in found.items():
                costs[name][type_name] += cost
            advance(1)
    return costs


def _rounded(
    rounded: Rounding,
    tensor: PlannedTensor,
    expert: int,
    rows: Indices,
    weights: Floats,
    columns: Floats,
    importance: Values | None,
) -> tuple[str, dict[str, float]]:
    """What some rows of one expert, ``weights`` being their share in the cost, cost by type."""
    values, found = tensor.matrix.read(expert, rows), {}
    for type_name in tensor.types:
        error = (rounded(values, type_name, importance) - values).astype(np.float64)
        found[type_name] = float(weights @ (np.square(error) @ columns))
    return tensor.name, found


def _pieces(
    tensor: PlannedTensor, sensitivity: Sensitivity, rows_drawn: int, draw: np.random.Generator
) -> Iterator[tuple[PlannedTensor, int, Indices, Floats, Floats, Values | None]]:
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
        used = None if importance is None else importance[expert]
        for first in range(0, len(of_expert), ROWS_AT_A_TIME):
            some = of_expert[first : first + ROWS_AT_A_TIME]
            yield tensor, int(expert), rows[some], shares[some], columns[expert], used


def _drawn(weights: Floats, most: int, draw: np.random.Generator) -> tuple[Indices, Floats]:
    """Places and weights: all that count, or a systematic sample in proportion to the weights."""
    counting = np.flatnonzero(weights)
    if len(counting) <= most:
        return counting, weights[counting]
    ends = np.cumsum(weights[counting])
    marks = (draw.random() + np.arange(most)) * ends[-1] / most
    hit, times = np.unique(np.searchsorted(ends, marks, side="right"), return_counts=True)
    return counting[np.minimum(hit, len(counting) - 1)], times * ends[-1] / most
