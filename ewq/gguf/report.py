"""Reading an exported file back: what is in it, against what was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import dropwhile
from pathlib import Path
from typing import Any

from ewq.checkpoint.gguf_header import GgufHeader, nominal_bytes, read_header
from ewq.errors import EwqError
from ewq.gguf.quantize import Fallback


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the file."""

    name: str
    wanted: str | None
    """Type asked for; ``None`` where llama.cpp was left to choose."""
    stored: str
    nbytes: int
    extra_bytes: int
    """What a fallback to another type costs over the type asked for; 0 without one."""


@dataclass(frozen=True)
class ExportReport:
    """An export, as read back from the file itself."""

    path: Path
    tensors: tuple[StoredTensor, ...]
    parameters: int
    weights_bytes: int
    file_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def bits_per_weight(self) -> float:
        """``8 * weights_bytes / parameters`` over the whole file."""
        return 8 * self.weights_bytes / self.parameters

    @property
    def fallbacks(self) -> tuple[StoredTensor, ...]:
        """Tensors stored in another type than the one asked for."""
        return tuple(tensor for tensor in self.tensors if tensor.extra_bytes)

    @property
    def bytes_by_type(self) -> Mapping[str, int]:
        """Bytes of all tensors of each type, largest first."""
        totals: Counter[str] = Counter()
        for tensor in self.tensors:
            totals[tensor.stored] += tensor.nbytes
        return dict(totals.most_common())

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return {
            **vars(self),
            "path": str(self.path),
            "bits_per_weight": self.bits_per_weight,
            "bytes_by_type": self.bytes_by_type,
            "tensors": [vars(tensor) for tensor in self.tensors],
            "notes": list(self.notes),
        }


def read_back(
    path: Path,
    source: GgufHeader,
    wanted: Mapping[str, str],
    fallbacks: Sequence[Fallback],
    notes: Sequence[str] = (),
) -> ExportReport:
    """Compare a written file with its source and with the types asked for.

    ``wanted``: tensor name -> ggml type, others are llama.cpp's choice. ``fallbacks``, what the
    quantizer had to change, are in the report and summed up in a note.

    Raises:
        EwqError: a tensor is missing, changed its shape, or has a type nobody asked for.
    """
    header = read_header(path)
    if _shapes(header) != _shapes(source):
        raise EwqError(f"{path.name}: the exported tensors are not those of {source.path.name}")
    changed = {fallback.tensor: fallback for fallback in fallbacks}
    tensors = []
    for tensor in header.tensors:
        asked, fallback = wanted.get(tensor.name), changed.get(tensor.name)
        if asked is not None and asked != tensor.type_name and fallback is None:
            raise EwqError(
                f"{path.name}: {tensor.name} is stored as {tensor.type_name}, {asked} was asked for"
            )
        asked = fallback.wanted if fallback else asked
        least = nominal_bytes(asked, tensor.numel) if fallback and asked else tensor.nbytes
        tensors.append(
            StoredTensor(tensor.name, asked, tensor.type_name, tensor.nbytes, tensor.nbytes - least)
        )
    report = ExportReport(
        path=path,
        tensors=tuple(tensors),
        parameters=header.parameters,
        weights_bytes=header.weights_bytes,
        file_bytes=path.stat().st_size,
    )
    return replace(report, notes=(*_fallback_notes(report.fallbacks), *notes))


def _fallback_notes(fallbacks: Sequence[StoredTensor]) -> tuple[str, ...]:
    if not fallbacks:
        return ()
    extra = sum(tensor.extra_bytes for tensor in fallbacks)
    changes = Counter(f"{tensor.wanted} -> {tensor.stored}" for tensor in fallbacks)
    counted = ", ".join(f"{change} ({count})" for change, count in changes.most_common())
    return (
        f"{len(fallbacks)} tensors have rows that the blocks of their type do not divide, and are "
        f"stored otherwise, {extra:,} bytes larger: {counted}",
    )


def _shapes(header: GgufHeader) -> dict[str, tuple[int, ...]]:
    """Shapes by name, reversed; llama.cpp drops trailing dimensions of 1 when it writes."""
    return {of.name: tuple(dropwhile((1).__eq__, reversed(of.shape))) for of in header.tensors}
