"""What a plan can give types to, and what they weigh: a GGUF file, or bitsandbytes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ewq.checkpoint.gguf_header import GgufHeader, nominal_bytes, read_header
from ewq.checkpoint.layout import Layout, find_layout
from ewq.checkpoint.opening import Checkpoint
from ewq.checkpoint.tensors import TensorInfo
from ewq.entropy.weights import four_bit
from ewq.errors import PlanError
from ewq.fit.costs import PlannedTensor, Rounding, StoredMatrix, Values, stored_matrix
from ewq.gguf.quantize import recipe_types
from ewq.gguf.recipe import EMBEDDING, OUTPUT, TensorNames
from ewq.gguf.rounding import divides, rounded
from ewq.planning.plan import BITSANDBYTES, PRECISION_OF_TYPE
from ewq.planning.sizes import footprint_of, format_of
from ewq.sensitivity.measure import Sensitivity
from ewq.variants import Precision

GGUF = "gguf"
NF4, INT8 = "nf4", "int8"
"""What bitsandbytes has; LLM.int8 rounds the inputs of a product too."""
GGUF_TYPES = (
    *("Q2_K", "IQ3_XXS", "Q3_K", "IQ3_S", "IQ4_XS", "Q4_K", "Q4_0", "IQ4_NL"),
    *("Q4_1", "Q5_K", "Q5_0", "Q5_1", "Q6_K", "Q8_0"),
)
"""What every llama.cpp of the last two years reads. Types below Q2_K round a tenth as fast."""
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
    fixed_bytes: int
    """Of all tensors whose type is fixed."""
    fixed_stored_bytes: int
    """The same with the file's padding."""
    parameters: int
    rounded: Rounding
    of_precision: Mapping[Precision, str]
    """Types that plans of precisions mean; what is missing stays as it is."""
    header_bytes: int = 0
    """Of the file, before its first tensor."""

    def stored(self, nbytes: int) -> int:
        """Bytes that a tensor takes in the file, padding included."""
        return padded(nbytes) if self.name == GGUF else nbytes


def padded(nbytes: int) -> int:
    """Bytes that a tensor takes in a GGUF file."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def gguf_target(checkpoint: Checkpoint, base: Path, sensitivity: Sensitivity) -> Target:
    """The tensors that llama.cpp quantizes and the sensitivity covers (none is a PlanError).

    ``base`` is the checkpoint's conversion to 16 bits.
    """
    header = read_header(base)
    takes_types = recipe_types(base, "Q8_0").keys()
    matched = _matched(checkpoint, header, sensitivity)
    tensors = tuple(tensor for tensor in matched if tensor.name in takes_types)
    if not tensors:
        raise PlanError(f"{checkpoint.model} has no tensor that ewq can give a ggml type")
    planned = {tensor.name for tensor in tensors}
    rest = [tensor for tensor in header.tensors if tensor.name not in planned]
    return Target(
        GGUF,
        tensors,
        {tensor.name: tensor.dtype for tensor in rest},
        sum(tensor.nbytes for tensor in rest),
        sum(padded(tensor.nbytes) for tensor in rest),
        header.parameters,
        rounded,
        {Precision.EIGHT_BIT: "Q8_0", Precision.FOUR_BIT: "Q4_K"},
        header.tensors[0].offset,
    )


def _matched(
    checkpoint: Checkpoint, header: GgufHeader, sensitivity: Sensitivity
) -> Iterator[PlannedTensor]:
    """Every tensor of the file that is a matrix of the model, or some rows of one."""
    layout, names = find_layout(checkpoint), TensorNames(header)
    blocks = _block_of(layout)
    stored = {tensor.name: tensor for tensor in header.tensors}
    no_head = not any("lm_head" in n or "embed_out" in n for n in sensitivity.matrices)
    done: set[str] = set()
    for weight in sensitivity.matrices:
        found = names.of_weight(weight)
        matrix = stored_matrix(checkpoint, layout, weight) if found else None
        if matrix is None or done & set(found):
            continue
        done |= set(found)
        height = matrix.rows // len(found)
        for part, name in enumerate(found):
            rows = (part * height, (part + 1) * height)
            yield _planned(stored[name], matrix, blocks.get(weight), rows)
        if EMBEDDING in found and OUTPUT in stored and no_head:
            yield _planned(stored[OUTPUT], matrix, None, (0, matrix.rows))


def _planned(
    tensor: TensorInfo, matrix: StoredMatrix, block: int | None, rows: tuple[int, int]
) -> PlannedTensor:
    halves = ("F16",) if tensor.dtype == "F32" else ()
    smaller = (name for name in GGUF_TYPES if divides(name, tensor.shape[-1]))
    types = (*smaller, *halves, tensor.dtype)
    sizes = {name: nominal_bytes(name, tensor.numel) for name in types}
    return PlannedTensor(tensor.name, matrix, types, sizes, block, rows)


def bitsandbytes_target(checkpoint: Checkpoint, sensitivity: Sensitivity) -> Target:
    """The linear weights of a model in transformers; experts, embedding and head stay as stored.

    A PlanError where none of them can be planned.
    """
    layout = find_layout(checkpoint)
    footprint, rule = footprint_of(checkpoint, layout), format_of(NF4)
    blocks = _block_of(layout)
    types = (NF4, INT8, "raw")
    tensors = []
    for name in layout.weights:
        weight, matrix = footprint.weights[name], stored_matrix(checkpoint, layout, name)
        if matrix is not None and not weight.expert and name in sensitivity.matrices:
            sizes = {t: rule.nbytes(weight, PRECISION_OF_TYPE[t]) for t in types}
            tensors.append(PlannedTensor(name, matrix, types, sizes, blocks[name]))
    if not tensors:
        raise PlanError(f"{checkpoint.model} has no weight that bitsandbytes quantizes")
    raw = [name for name in layout.weights if name not in {tensor.name for tensor in tensors}]
    fixed_bytes = footprint.rest_nbytes(rule) + sum(footprint.weights[n].raw_bytes for n in raw)
    return Target(
        BITSANDBYTES,
        tuple(tensors),
        dict.fromkeys([*raw, *(info.name for info in footprint.rest)], "raw"),
        fixed_bytes,
        fixed_bytes,
        footprint.numel,
        _as_bitsandbytes,
        {Precision.EIGHT_BIT: INT8, Precision.FOUR_BIT: NF4},
    )


def _as_bitsandbytes(values: Values, type_name: str, _importance: Values | None) -> Values:
    """Rows as they come back from bitsandbytes, which knows no importance."""
    if type_name == "raw":
        return values
    if type_name == INT8:
        steps = np.abs(values).max(axis=1, keepdims=True) / 127
        return np.where(steps > 0, np.rint(values / np.where(steps > 0, steps, 1)) * steps, 0.0)
    return four_bit(values, type_name)


def _block_of(layout: Layout) -> dict[str, int]:
    return {name: block.index for block in layout.blocks for name in block.weights}
