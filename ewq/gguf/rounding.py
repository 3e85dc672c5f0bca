"""What ggml's types make of a weight in memory, bit by bit as in llama.cpp's files."""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ewq.checkpoint.gguf_header import ggml_types, nominal_bytes
from ewq.errors import BackendUnavailable, InputError

Values = NDArray[np.float32]
UNROUNDED = "F32"


class _TypeTraits(ctypes.Structure):
    """The head of ggml.h's ``struct ggml_type_traits``."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


@cache
def _library() -> Any:
    """libggml-base, which llama-cpp-python brings along."""
    from ewq.gguf.llama_native import llama_library

    folder = Path(llama_library().__file__).parent / "lib"
    found = sorted(folder.glob("*ggml-base*"))
    if not found:
        raise BackendUnavailable(f"no ggml library in {folder}; reinstall llama-cpp-python")
    library = ctypes.CDLL(str(found[0]))
    library.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = (
        ctypes.c_int, pointer, pointer, count, count, count, pointer,
    )  # fmt: skip
    return library


def block_size(type_name: str) -> int:
    """Values of a block, which share a scale."""
    return ggml_types()[type_name][1]


def divides(type_name: str, columns: int) -> bool:
    """Whether rows of so many values can be stored in a type."""
    return columns % block_size(type_name) == 0


def pack(values: Values, type_name: str, importance: Values | None = None) -> NDArray[np.uint8]:
    """Rows, ``[rows, columns]``, as ggml's quantizer stores them, ``[rows, bytes of a row]``.

    ``importance`` is ``[columns]``. Threads may call it at once; an InputError of rows that do not
    divide into the type's blocks.
    """
    if not divides(type_name, values.shape[1]):
        raise InputError(f"rows of {values.shape[1]} values cannot be stored as {type_name}")
    source = np.ascontiguousarray(values, dtype=np.float32)
    rows, columns = source.shape
    packed = np.empty((rows, nominal_bytes(type_name, columns)), dtype=np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32)
    number, pointer = ggml_types()[type_name][0], None if weights is None else weights.ctypes.data
    _library().ggml_quantize_chunk(
        number, source.ctypes.data, packed.ctypes.data, 0, rows, columns, pointer
    )
    return packed


def unpack(packed: NDArray[np.uint8], type_name: str) -> Values:
    """The values of packed rows, ``[rows, columns]``."""
    number, block, block_bytes = ggml_types()[type_name]
    source = np.ascontiguousarray(packed)
    back = np.empty((len(source), source.shape[1] // block_bytes * block), dtype=np.float32)
    traits = _library().ggml_get_type_traits(number).contents
    traits.to_float(source.ctypes.data, back.ctypes.data, back.size)
    return back


def rounded(values: Values, type_name: str, importance: Values | None = None) -> Values:
    """Rows as they come back from a ggml type; arguments as for :func:`pack`."""
    if type_name == UNROUNDED:
        return values
    return unpack(pack(values, type_name, importance), type_name)
