"""Rounding an exported file's matrices again, with errors compensated (:mod:`ewq.gguf.gptq`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ewq.checkpoint.gguf_header import GgufHeader
from ewq.checkpoint.layout import Weight, find_layout
from ewq.errors import InputError
from ewq.gguf.convert import CONVERTED_TYPES
from ewq.gguf.gptq import round_matrix
from ewq.gguf.recipe import tensors_of_weights
from ewq.progress import NO_PROGRESS, Progress

if TYPE_CHECKING:
    from ewq.checkpoint.opening import Checkpoint
    from ewq.sensitivity.calibration import Calibration

MOMENTS_BYTES = 2 * 2**30
"""Most bytes of second moments at a time; matrices beyond wait for another pass over the text."""


def require_folder(checkpoint: Checkpoint) -> None:
    """Refuse a model that cannot be run for the inputs of its matrices.

    Raises:
        InputError: it is a GGUF file.
    """
    if checkpoint.is_gguf:
        raise InputError(f"{checkpoint.model}: --rounding gptq needs the Hugging Face folder")


@dataclass(frozen=True)
class Recoding:
    """Error-compensating rounding of a checkpoint's matrices on a calibration text."""

    checkpoint: Checkpoint
    calibration: Calibration
    device: str = "cpu"

    def apply(
        self, path: Path, source: GgufHeader, progress: Progress = NO_PROGRESS
    ) -> tuple[str, ...]:
        """Rewrite the quantized matrices of ``path`` in place; types and sizes stay.

        Args:
            path: a file that was just quantized.
            source: header of the unquantized file that it was made from.
            progress: told of tokens and matrices.

        Returns:
            A note on matrices that keep ggml's own rounding.
        """
        import gguf

        weights = find_layout(self.checkpoint).details
        tensors = {name: found[0] for name, found in tensors_of_weights(source, weights).items()}
        before = {tensor.name: tensor for tensor in gguf.GGUFReader(source.path).tensors}
        made = gguf.GGUFReader(path, "r+")
        after = {tensor.name: tensor for tensor in made.tensors}
        quantized = [
            weight
            for weight in weights.values()
            if after[tensors[weight.name]].tensor_type.name not in CONVERTED_TYPES
        ]
        for weight, moments in self._moments([w for w in quantized if not w.expert], progress):
            old, new = before[tensors[weight.name]], after[tensors[weight.name]]
            values = gguf.quants.dequantize(old.data, old.tensor_type)
            new.data[...] = round_matrix(values, moments, new.tensor_type.name)
        made.data.flush()
        return _notes(quantized)

    def _moments(
        self, weights: Sequence[Weight], progress: Progress
    ) -> Iterator[tuple[Weight, Any]]:
        """Every weight with the second moments of its inputs, as many at a time as fit."""
        from ewq.sensitivity.measure import load_model
        from ewq.sensitivity.moments import SecondMoments

        dtype = "float32" if self.device == "cpu" else "bfloat16"
        model = load_model(self.checkpoint, self.device, dtype)
        for group in _groups(weights):
            moments = SecondMoments(model, [weight.name for weight in group])
            progress.start("reading what the matrices read", self.calibration.tokens, "tokens")
            for ids in self.calibration.sequences:
                moments.add(ids)
                progress.advance(len(ids))
            progress.finish()
            progress.start("rounding", len(group), "matrices")
            means = moments.means()
            for weight in group:
                yield weight, means[weight.name]
                progress.advance(1)
            progress.finish()


def _groups(weights: Sequence[Weight]) -> Iterator[list[Weight]]:
    group: list[Weight] = []
    free = MOMENTS_BYTES
    for weight in weights:
        nbytes = 4 * weight.in_features**2
        if group and nbytes > free:
            yield group
            group, free = [], MOMENTS_BYTES
        group.append(weight)
        free -= nbytes
    if group:
        yield group


def _notes(quantized: Sequence[Weight]) -> tuple[str, ...]:
    experts = sum(weight.expert for weight in quantized)
    if not experts:
        return ()
    return (f"{experts} stacks of experts keep ggml's own rounding: gptq reads single matrices",)
