"""Rounding an exported file's matrices again, with errors compensated (:mod:`ewq.gguf.gptq`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ewq.checkpoint.gguf_header import GgufHeader
from ewq.checkpoint.layout import find_layout
from ewq.errors import InputError
from ewq.gguf.convert import CONVERTED_TYPES
from ewq.gguf.gptq import round_matrix
from ewq.gguf.recipe import TensorNames
from ewq.progress import Progress, step

if TYPE_CHECKING:
    from ewq.checkpoint.opening import Checkpoint
    from ewq.sensitivity.calibration import Calibration

MOMENTS_BYTES = 2 * 2**30
"""Most bytes of second moments at a time; matrices beyond wait for another pass over the text."""


def require_folder(checkpoint: Checkpoint) -> None:
    """Refuse a GGUF file, which cannot be run for the inputs of its matrices."""
    if checkpoint.is_gguf:
        raise InputError(f"{checkpoint.model}: --rounding gptq needs the Hugging Face folder")


def recode(
    checkpoint: Checkpoint,
    calibration: Calibration,
    progress: Progress,
    path: Path,
    source: GgufHeader,
) -> tuple[str, ...]:
    """Rewrite the quantized matrices of ``path``, which was just made from ``source``, in place.

    Errors are compensated on the calibration text; types and sizes stay.

    Returns:
        A note on matrices that keep ggml's own rounding.
    """
    import gguf

    from ewq.sensitivity.measure import load_model

    model = load_model(checkpoint, "cpu", "float32")
    before = {tensor.name: tensor for tensor in gguf.GGUFReader(source.path).tensors}
    made = gguf.GGUFReader(path, "r+")
    quantized = {
        tensor.name: tensor
        for tensor in made.tensors
        if tensor.tensor_type.name not in CONVERTED_TYPES
    }
    names = TensorNames(source)
    weights = find_layout(checkpoint).details.values()
    columns = {weight.name: weight.in_features for weight in weights if not weight.expert}
    for name, moments in _moments(model, calibration, {**columns, **_head(model)}, progress):
        for tensor in names.of_weight(name):
            if tensor in quantized:
                old, new = before[tensor], quantized[tensor]
                values = gguf.quants.dequantize(old.data, old.tensor_type)
                new.data[...] = round_matrix(values, moments, new.tensor_type.name)
    made.data.flush()
    experts = [weight.name for weight in weights if weight.expert]
    if not experts:
        return ()
    return (f"{len(experts)} stacks of experts keep ggml's own rounding",)


def _moments(
    model: Any, calibration: Calibration, columns: Mapping[str, int], progress: Progress
) -> Iterator[tuple[str, Any]]:
    """Every matrix with the second moments of its inputs, as many at a time as fit."""
    from ewq.sensitivity.gradients import SecondMoments

    for group in _groups(columns):
        moments = SecondMoments(model, group)
        reading = "reading what the matrices read"
        with step(progress, reading, calibration.tokens, "tokens") as advance:
            for ids in calibration.sequences:
                moments.add(ids)
                advance(len(ids))
        with step(progress, "rounding", len(group), "matrices") as advance:
            for found in moments.means().items():
                yield found
                advance(1)


def _head(model: Any) -> dict[str, int]:
    """The output head's matrix, which may be the embedding's, and its columns."""
    head = model.get_output_embeddings().weight
    return {name: head.shape[1] for name, matrix in model.named_parameters() if matrix is head}


def _groups(columns: Mapping[str, int]) -> Iterator[list[str]]:
    group: list[str] = []
    free = MOMENTS_BYTES
    for name, count in columns.items():
        nbytes = 4 * count**2
        if group and nbytes > free:
            yield group
            group, free = [], MOMENTS_BYTES
        group.append(name)
        free -= nbytes
    if group:
        yield group
