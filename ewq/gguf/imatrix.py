"""Importance matrices: how much each input column of a weight mattered on some text."""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ewq.checkpoint.gguf_header import GgufHeader, read_header
from ewq.errors import InputError
from ewq.files import said_of, scratch_beside

NEEDED_BY = ("IQ1", "IQ2", "IQ3_XXS", "Q2_K_S")
"""How the types begin that llama.cpp refuses to make without importances."""
UNUSED_BY = frozenset({"F32", "F16", "BF16", "Q8_0", "MXFP4", "NVFP4", "TQ1_0", "TQ2_0"})
"""Types whose quantizers do not look at importances (``ggml-quants.c``)."""
SUMS, COUNTS = ".in_sum2", ".counts"
"""Suffixes in a GGUF imatrix: sums of squared activations, and how many were summed."""


def read_imatrix(path: Path) -> dict[str, NDArray[np.float32]]:
    """Mean squared activations by tensor name, ``[columns]`` or ``[experts * columns]``.

    A CheckpointError of what is no GGUF, an InputError of one that ``llama-imatrix`` did not make.
    """
    from gguf import GGUFReader

    read_header(path)
    arrays = {tensor.name: np.asarray(tensor.data) for tensor in GGUFReader(path).tensors}
    found = {}
    for name, sums in arrays.items():
        counts = arrays.get(name.removesuffix(SUMS) + COUNTS)
        if name.endswith(SUMS) and counts is not None:
            # With sums of zero, of an expert that the text never chose, the quantizer may write
            # anything; llama-quantize takes 1 instead.
            counts = counts.reshape(-1, 1)
            each = sums.reshape(len(counts), -1) / np.maximum(counts, 1)
            means = np.where(counts > 0, each, 1).ravel()
            found[name.removesuffix(SUMS)] = np.ascontiguousarray(means, dtype=np.float32)
    if not found:
        raise InputError(f"{path} is not an importance matrix; make one with llama-imatrix")
    return found


def write_imatrix(
    path: Path,
    sums: Mapping[str, NDArray[np.float64]],
    counts: Mapping[str, NDArray[np.float64]],
    *,
    source: str,
    sequences: int,
    sequence_tokens: int,
) -> Path:
    """Write an importance matrix as ``llama-imatrix`` does: whole, or not at all (EwqError).

    ``sums``: squared activations summed over the tokens of the text ``source`` by tensor,
    ``[experts, columns]``. ``counts``: tokens that reached each expert, ``[experts]``.
    """
    from gguf import GGUFWriter

    with said_of(path), scratch_beside(path) as work:
        writer = GGUFWriter(work / "imatrix.gguf", "")
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", [source])
        writer.add_uint32("imatrix.chunk_count", sequences)
        writer.add_uint32("imatrix.chunk_size", sequence_tokens)
        for name in sorted(sums):
            writer.add_tensor(f"{name}{SUMS}", sums[name].astype(np.float32))
            writer.add_tensor(f"{name}{COUNTS}", counts[name].astype(np.float32)[:, None])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        (work / "imatrix.gguf").replace(path)
    return path


def check_imatrix(types: Collection[str], path: Path | None) -> None:
    """Refuse recipes or ggml types without the matrix they need, and one that cannot be read."""
    needy = [name for name in types if name.startswith(NEEDED_BY)]
    if path is None and needy:
        raise InputError(f"{needy[0]} needs --imatrix FILE, made by llama-imatrix")
    if path is not None:
        read_imatrix(path)


def check_entries(path: Path, source: GgufHeader) -> None:
    """Refuse an importance matrix of another model than ``source``: it would have no effect."""
    entries = read_imatrix(path)
    if entries.keys().isdisjoint(tensor.name for tensor in source.tensors):
        said = f"{path} has no entry for any tensor of {source.path.name}"
        raise InputError(f"{said}: it was made for another model")


def effect_notes(path: Path, stored: Mapping[str, str]) -> tuple[str, ...]:
    """What an importance matrix did not do for ``stored``: tensors -> their types."""
    used = [name for name, kind in stored.items() if kind not in UNUSED_BY]
    if not used:
        return (f"{path.name} had no effect: no type of this file uses an importance matrix",)
    entries = read_imatrix(path)
    absent = [name for name in used if name not in entries]
    said = f"{path.name} has no entry for {len(absent)} of {len(used)} quantized tensors, such as "
    return (said + absent[0],) if absent else ()
