"""Reading an exported file back: what is in it, against what was asked for."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any

from ewq.checkpoint.gguf_header import GgufHeader, nominal_bytes, read_header
from ewq.errors import EwqError


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
    fallbacks: Mapping[str, str],
    notes: tuple[str, ...] = (),
) -> ExportReport:
    """Compare a written file with its source and with the types asked for.

    ``wanted``: tensor name -> ggml type, others are llama.cpp's choice; ``fallbacks``: the same of
    tensors that the quantizer stored otherwise. An EwqError where a tensor is missing, changed its
    shape, or has a type nobody asked for.
    """
    header = read_header(path)
    if _shapes(header) != _shapes(source):
        raise EwqError(f"{path.name}: the exported tensors are not those of {source.path.name}")
    tensors = []
    for tensor in header.tensors:
        name, stored, changed = tensor.name, tensor.dtype, fallbacks.get(tensor.name)
        asked = changed or wanted.get(name)
        if not changed and asked not in (None, stored):
            raise EwqError(f"{path.name}: {name} is stored as {stored}, {asked} was asked for")
        extra = tensor.nbytes - nominal_bytes(changed, tensor.numel) if changed else 0
        tensors.append(StoredTensor(name, asked, stored, tensor.nbytes, extra))
    larger = [tensor for tensor in tensors if tensor.extra_bytes]
    if larger:
        changes = Counter(f"{tensor.wanted} -> {tensor.stored}" for tensor in larger)
        counted = ", ".join(f"{change} ({count})" for change, count in changes.most_common())
        said = (
            f"{len(larger)} tensors have rows that the blocks of their type do not divide, and are "
            f"stored otherwise, {sum(t.extra_bytes for t in larger):,} bytes larger: {counted}"
        )
        notes = (said, *notes)
    return ExportReport(
        path=path,
        tensors=tuple(tensors),
        parameters=header.parameters,
        weights_bytes=header.weights_bytes,
        file_bytes=path.stat().st_size,
        notes=notes,
    )


def _shapes(header: GgufHeader) -> dict[str, tuple[int, ...]]:
    """Shapes by name; llama.cpp drops leading dimensions of 1 when it writes."""
    return {of.name: tuple(dropwhile((1).__eq__, of.shape)) for of in header.tensors}
