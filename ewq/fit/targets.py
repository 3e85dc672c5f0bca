"""What a plan can give types to, and what they weigh: a GGUF file, or bitsandbytes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ewq.checkpoint.gguf_header import GgufHeader, GgufTensor, read_header
from ewq.checkpoint.layout import Layout, find_layout
from ewq.checkpoint.opening import Checkpoint
from ewq.errors import PlanError
from ewq.fit.costs import PlannedTensor, Rounding, Values
from ewq.fit.stored import StoredMatrix, stored_matrix
from ewq.gguf.quantize import recipe_types
from ewq.gguf.recipe import EMBEDDING, OUTPUT, TensorNames
from ewq.gguf.rounding import divides, rounded, stored_bytes
from ewq.planning.plan import BITSANDBYTES, PRECISION_OF_TYPE
from ewq.planning.sizes import footprint_of, format_of
from ewq.precision import Precision
from ewq.sensitivity.measure import Sensitivity

GGUF = "gguf"
INT8 = "int8"
"""bitsandbytes' LLM.int8, which rounds the inputs of a product too."""
GGUF_TYPES = (
    *("Q2_K", "IQ3_XXS", "Q3_K", "IQ3_S", "IQ4_XS", "Q4_K", "Q4_0", "IQ4_NL"),
    *("Q4_1", "Q5_K", "Q5_0", "Q5_1", "Q6_K", "Q8_0"),
)
"""What every llama.cpp of the last two years reads. Types below Q2_K round a tenth as fast."""
Rows = tuple[int, int | None]
ALIGNMENT = 32
"""Bytes to which GGUF pads every tensor."""


@dataclass(frozen=True)
class Target:
    """Everything that a file (or a model in memory) stores, and how it rounds."""

    name: str
    """``gguf`` or ``bitsandbytes``."""
    tensors: tuple[PlannedTensor, ...]
    fixed: Mapping[str, str]
    """Type of every other tensor."""
    fixed_sizes: tuple[int, ...]
    """Their bytes."""
    parameters: int
    rounded: Rounding
    header_bytes: int = 0
    """Of the file, before its first tensor."""
    of_precision: Mapping[Precision, str] = field(default_factory=dict)
    """Types that plans of precisions mean; what is missing stays as it is."""
    alignment: int = 1
    """Bytes to which the file pads every tensor."""

    def stored(self, nbytes: int) -> int:
        """Bytes that a tensor takes in the file."""
        return -(-nbytes // self.alignment) * self.alignment

    @property
    def fixed_bytes(self) -> int:
        """Of all tensors whose type is fixed."""
        return sum(self.fixed_sizes)

    @property
    def fixed_stored_bytes(self) -> int:
        """The same with the file's padding."""
        return sum(map(self.stored, self.fixed_sizes))


def gguf_target(checkpoint: Checkpoint, base: Path, sensitivity: Sensitivity) -> Target:
    """The tensors of a converted file that llama.cpp quantizes and the sensitivity covers.

    Args:
        checkpoint: a Hugging Face folder.
        base: its conversion to 16 bits.
        sensitivity: of the checkpoint.

    Raises:
        PlanError: none of them can be planned.
    """
    header = read_header(base)
    stored = {tensor.name: tensor for tensor in header.tensors}
    takes_types = recipe_types(base, "Q8_0").keys()
    tensors = tuple(
        _gguf_tensor(stored[name], matrix, rows, block)
        for name, matrix, rows, block in _matched(checkpoint, header, sensitivity)
        if name in takes_types
    )
    if not tensors:
        raise PlanError(f"{checkpoint.model} has no tensor that ewq can give a ggml type")
    planned = {tensor.name for tensor in tensors}
    rest = [tensor for tensor in header.tensors if tensor.name not in planned]
    return Target(
        GGUF,
        tensors,
        {tensor.name: tensor.type_name for tensor in rest},
        tuple(tensor.nbytes for tensor in rest),
        header.parameters,
        rounded,
        header.data_start,
        {Precision.EIGHT_BIT: "Q8_0", Precision.FOUR_BIT: "Q4_K"},
        ALIGNMENT,
    )


def padded(nbytes: int) -> int:
    """Bytes that a tensor takes in a GGUF file."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _matched(
    checkpoint: Checkpoint, header: GgufHeader, sensitivity: Sensitivity
) -> Iterator[tuple[str, StoredMatrix, Rows, int | None]]:
    """Tensor of the file, matrix of the model, rows of it, block."""
    layout, names = find_layout(checkpoint), TensorNames(header)
    blocks = _block_of(layout)
    present = {tensor.name for tensor in header.tensors}
    done: set[str] = set()
    for weight in sensitivity.matrices:
        found = names.of_weight(weight)
        matrix = stored_matrix(checkpoint, layout, weight) if found else None
        if matrix is None or done & set(found):
            continue
        height = matrix.rows // len(found)
        for part, name in enumerate(found):
            yield name, matrix, (part * height, (part + 1) * height), blocks.get(weight)
        done |= set(found)
        if (
            EMBEDDING in found
            and OUTPUT in present
            and not any("lm_head" in n or "embed_out" in n for n in sensitivity.matrices)
        ):
            yield OUTPUT, matrix, (0, None), None
            done.add(OUTPUT)


def _gguf_tensor(
    tensor: GgufTensor, matrix: StoredMatrix, rows: Rows, block: int | None
) -> PlannedTensor:
    columns = tensor.shape[0]
    halves = ("F16",) if tensor.type_name == "F32" else ()
    types = (*(name for name in GGUF_TYPES if divides(name, columns)), *halves, tensor.type_name)
    sizes = {name: stored_bytes(name, tensor.numel) for name in types}
    return PlannedTensor(tensor.name, matrix, types, sizes, block, rows)


def bitsandbytes_target(
    checkpoint: Checkpoint, sensitivity: Sensitivity, four_bit: str = "nf4"
) -> Target:
    """The linear weights of a model in transformers; experts, embedding and head stay as stored.

    Raises:
        PlanError: none of them can be planned.
    """
    layout = find_layout(checkpoint)
    footprint, rule = footprint_of(checkpoint, layout), format_of("nf4")
    blocks = _block_of(layout)
    tensors = []
    for name in layout.weights:
        weight, matrix = footprint.weights[name], stored_matrix(checkpoint, layout, name)
        if matrix is None or weight.stacked or name not in sensitivity.matrices:
            continue
        types = (four_bit, INT8, "raw")
        sizes = {t: rule.nbytes(weight, PRECISION_OF_TYPE[t]) for t in types}
        tensors.append(PlannedTensor(name, matrix, types, sizes, blocks[name]))
    if not tensors:
        raise PlanError(f"{checkpoint.model} has no weight that bitsandbytes quantizes")
    planned = {tensor.name for tensor in tensors}
    rest = {name: "raw" for name in layout.weights if name not in planned}
    rest |= {info.name: "raw" for info in footprint.rest}
    raw = [footprint.weights[name].raw_bytes for name in layout.weights if name not in planned]
    return Target(
        BITSANDBYTES,
        tuple(tensors),
        rest,
        (footprint.rest_nbytes(rule), *raw),
        footprint.numel,
        _as_bitsandbytes,
        of_precision={Precision.EIGHT_BIT: INT8, Precision.FOUR_BIT: four_bit},
    )


def _as_bitsandbytes(values: Values, type_name: str, importance: Values | None) -> Values:
    """Rows as they come back from bitsandbytes, which knows no importance."""
    del importance
    if type_name == "raw":
        return values
    if type_name == INT8:
        steps = np.abs(values).max(axis=1, keepdims=True) / 127
        return np.where(steps > 0, np.rint(values / np.where(steps > 0, steps, 1)) * steps, 0.0)
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(torch.from_numpy(values), quant_type=type_name)
    back: Values = dequantize_4bit(packed, state).numpy()
    return back


def _block_of(layout: Layout) -> dict[str, int]:
    return {name: block.index for block in layout.blocks for name in block.weights}


def kind_of(name: str) -> str:
    """The name without the number of its block: ``blk.*.ffn_down.weight``."""
    return re.sub(r"\.\d+\.", ".*.", name)
