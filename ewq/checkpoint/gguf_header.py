"""Reading a GGUF header without trusting it.

Pure Python over a memory map: no count, length or offset is believed before it has been compared
with the bytes that are there, so a hostile file costs neither memory nor time, and native code
sees validated files only. ``gguf.GGUFReader`` believes them, and is ten times as slow.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ewq.checkpoint.tensors import FLOATS, TensorInfo
from ewq.errors import BackendUnavailable, CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 63
"""llama.cpp keeps tensor names in 64 bytes with a terminating zero."""
LEAST_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8
LEAST_PAIR_BYTES = 8 + 1 + 4 + 1
STRING, ARRAY = 8, 9
SCALARS: Mapping[int, str] = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
"""GGUF value type -> struct format."""


@dataclass(frozen=True)
class GgufHeader:
    """Everything a GGUF file says about itself."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of it, such as ``llama``; a file without one is no model."""
        named = self.metadata.get("general.architecture")
        if not isinstance(named, str):
            raise CheckpointError(f"{self.path}: names no general.architecture; it is no model")
        return named

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors, padding between them not counted."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """Values in all tensors."""
        return sum(tensor.numel for tensor in self.tensors)


def read_header(path: str | Path) -> GgufHeader:
    """Read and validate the header of a GGUF file.

    A CheckpointError where it is no such file or contradicts itself, a BackendUnavailable without
    the ``gguf`` extra, which knows ggml's types.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size < 24:
                raise CheckpointError(f"{path}: {size} bytes are too few for a GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).header()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def gguf_library() -> Any:
    """The module ``gguf``; a BackendUnavailable without the extra."""
    try:
        import gguf
    except ImportError as error:
        raise BackendUnavailable("GGUF files need: pip install 'ewq[gguf]'") from error
    return gguf


@cache
def ggml_types() -> Mapping[str, tuple[int, int, int]]:
    """Name of a ggml type -> (its number, values per block, bytes per block)."""
    sizes_of = gguf_library().GGML_QUANT_SIZES
    return {kind.name: (int(kind), *sizes) for kind, sizes in sizes_of.items()}


def nominal_bytes(type_name: str, numel: int) -> int:
    """Bytes that ``numel`` values take in a type, were every row divisible; rounded up."""
    _, block, block_bytes = ggml_types()[type_name]
    return -(-numel * block_bytes // block)


class _Reader:
    """A cursor over the mapped file; every read is checked against the end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._at = 0

    def header(self) -> GgufHeader:
        if self._take(4) != MAGIC:
            raise self._bad("is not a GGUF file (no GGUF magic)")
        version = self._number("I")
        if version not in VERSIONS:
            raise self._bad(f"is GGUF version {version}, not one of {VERSIONS} (little-endian)")
        tensors = self._count(LEAST_TENSOR_BYTES, "tensors")
        metadata = self._metadata(self._count(LEAST_PAIR_BYTES, "metadata pairs"))
        infos = [self._tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._bad(f"has general.alignment {alignment!r}, which is no power of two")
        start = -(-self._at // alignment) * alignment
        self._check_tensors(infos, start, alignment)
        placed = (replace(info, offset=start + info.offset) for info in infos)
        return GgufHeader(self._path, metadata, tuple(placed))

    def _bad(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: {what}")

    def _take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise self._bad(f"is truncated: {count} bytes wanted at offset {self._at}")
        self._at += count
        return self._data[self._at - count : self._at]

    def _numbers(self, layout: str, count: int) -> tuple[Any, ...]:
        return struct.unpack(f"<{count}{layout}", self._take(count * struct.calcsize(layout)))

    def _number(self, layout: str) -> int:
        value: int = self._numbers(layout, 1)[0]
        return value

    def _count(self, least_bytes: int, what: str) -> int:
        count = self._number("Q")
        if count * least_bytes > len(self._data) - self._at:
            raise self._bad(f"claims {count} {what}, more than its bytes can hold")
        return count

    def _name(self, what: str) -> str:
        raw = self._take(self._count(1, f"bytes of {what}"))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self._bad(f"has a {what} that is not UTF-8 near offset {self._at}") from None

    def _metadata(self, pairs: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key, kind = self._name("metadata key"), self._number("I")
            if key in metadata:
                raise self._bad(f"has the metadata key {key!r} twice")
            metadata[key] = self._array() if kind == ARRAY else self._values(kind, 1)[0]
        if metadata.get("split.count", 0) not in (0, 1):
            raise self._bad("is one part of a split model; join the parts with llama-gguf-split")
        return metadata

    def _array(self) -> list[Any]:
        kind = self._number("I")
        least_bytes = struct.calcsize(SCALARS[kind]) if kind in SCALARS else 8
        return self._values(kind, self._count(least_bytes, "array items"))

    def _values(self, kind: int, count: int) -> list[Any]:
        if kind in SCALARS:
            return list(self._numbers(SCALARS[kind], count))
        if kind != STRING:
            raise self._bad(f"has a metadata value of unknown type {kind} near offset {self._at}")
        # Values may hold any bytes (tokens do); only names must be readable.
        texts = (self._take(self._count(1, "bytes of text")) for _ in range(count))
        return [text.decode(errors="replace") for text in texts]

    def _tensor(self) -> TensorInfo:
        """One tensor, its offset counted from the start of the data section."""
        name = self._name("tensor name")
        if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
            raise self._bad(f"has a tensor name of {len(name.encode())} bytes")
        dimensions = self._number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self._bad(f"gives tensor {name} {dimensions} dimensions")
        shape = self._numbers("Q", dimensions)
        if 0 in shape or math.prod(shape) >= 2**62:
            raise self._bad(f"gives tensor {name} the impossible shape {shape}")
        kind = self._number("I")
        type_name = next((known for known, of in ggml_types().items() if of[0] == kind), None)
        if type_name is None:
            raise self._bad(f"stores tensor {name} in the unknown type {kind}")
        _, block, block_bytes = ggml_types()[type_name]
        if shape[0] % block:
            raise self._bad(f"stores {name} as {type_name}, rows not a multiple of {block}")
        nbytes = math.prod(shape) // block * block_bytes
        packed, offset = type_name not in FLOATS, self._number("Q")
        return TensorInfo(name, type_name, shape[::-1], nbytes, self._path, offset, packed)

    def _check_tensors(self, tensors: list[TensorInfo], start: int, alignment: int) -> None:
        """Tensors follow one another, each at the next aligned offset, inside the file."""
        if not tensors:
            raise self._bad("holds no tensors")
        expected, seen = 0, set[str]()
        for tensor in tensors:
            if tensor.name in seen:
                raise self._bad(f"has two tensors named {tensor.name}")
            if tensor.offset != expected:
                raise self._bad(f"places tensor {tensor.name} at {tensor.offset}, not {expected}")
            if (end := start + expected + tensor.nbytes) > len(self._data):
                raise self._bad(f"is truncated: {tensor.name} ends at {end} of {len(self._data)}")
            seen.add(tensor.name)
            expected += -(-tensor.nbytes // alignment) * alignment
