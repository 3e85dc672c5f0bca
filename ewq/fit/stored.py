"""Rows of a matrix of the loaded model, read from where the checkpoint stores them."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ewq.checkpoint.layout import Layout
from ewq.checkpoint.opening import Checkpoint
from ewq.errors import CheckpointError

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class StoredMatrix:
    """One matrix, or a stack of experts' matrices, in output rows and input columns."""

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

    def read(self, expert: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
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
    """Where a matrix of the loaded model lies; ``None`` where the checkpoint has nothing like it.

    Raises:
        CheckpointError: it is stored as something else than floating-point numbers.
    """
    weight = layout.details.get(name)
    sources = weight.sources if weight else _named_alike(checkpoint, layout, name)
    if not sources:
        return None
    first = checkpoint.tensors[sources[0]]
    if first.dtype not in FLOATS:
        raise CheckpointError(
            f"{checkpoint.model} stores {first.name} as {first.dtype}: it is quantized already; "
            "plan its 16-bit original"
        )
    transposed = bool(weight and weight.transposed)
    parts = _by_expert(sources) if weight and weight.expert else (sources,)
    experts = first.shape[0] if len(first.shape) == 3 else len(parts)
    *_, rows, columns = (*first.shape[:-2], *first.shape[:-3:-1]) if transposed else first.shape
    return StoredMatrix(checkpoint, name, parts, experts, rows * len(parts[0]), columns, transposed)


def _by_expert(sources: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Sources grouped by the expert's number; gate before up, as they are stacked."""
    grouped: dict[int, list[str]] = {}
    for source in sources:
        number = re.search(r"experts\.(\d+)\.", source)
        grouped.setdefault(int(number[1]) if number else 0, []).append(source)
    return tuple(tuple(sorted(grouped[expert], key=_part)) for expert in sorted(grouped))


def _part(source: str) -> int:
    return int(source.endswith(("up_proj.weight", "w3.weight")))


def _named_alike(checkpoint: Checkpoint, layout: Layout, name: str) -> tuple[str, ...]:
    """The tensor outside the blocks whose name ends as this one does, whatever stands before."""
    if name in checkpoint.tensors:
        return (name,)
    ending = "." + ".".join(name.split(".")[-2:])
    inside = {source for weight in layout.details.values() for source in weight.sources}
    found = [n for n in checkpoint.tensors if f".{n}".endswith(ending) and n not in inside]
    return (found[0],) if len(found) == 1 else ()
