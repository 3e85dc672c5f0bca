"""What a checkpoint weighs: its quantizable weights one by one, and everything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ewq.checkpoint.layout import SCALES, Layout, Weight, scale_of
from ewq.checkpoint.opening import Checkpoint
from ewq.checkpoint.tensor_info import TensorInfo
from ewq.planning.formats import Format, Stored
from ewq.precision import Precision

BUFFERS = (".rotary_emb.inv_freq", ".attn.masked_bias", ".attention.masked_bias")
"""Old checkpoints saved these buffers; they are not parameters and are not loaded."""


@dataclass(frozen=True)
class Footprint:
    """Bytes and parameters of a checkpoint, apart from where its values lie."""

    weights: Mapping[str, Stored]
    rest: tuple[TensorInfo, ...]
    """Embeddings, norms, biases, routers, the head: stored as they are."""

    @property
    def numel(self) -> int:
        """All parameters of the model."""
        return sum(of.numel for of in self.weights.values()) + sum(of.numel for of in self.rest)

    def nbytes(self, precisions: Mapping[str, Precision], target: Format) -> int:
        """Bytes of the whole model with ``precisions`` (weights not named stay raw)."""
        return self.rest_nbytes(target) + sum(
            target.nbytes(stored, precisions.get(name, Precision.RAW))
            for name, stored in self.weights.items()
        )

    def loaded_nbytes(
        self, precisions: Mapping[str, Precision], target: Format, value_bytes: int
    ) -> int:
        """Bytes of the whole model where everything not quantized is loaded at one width."""
        return sum(value_bytes * info.numel for info in self.rest) + sum(
            target.nbytes(
                replace(stored, raw_bytes=value_bytes * stored.numel),
                precisions.get(name, Precision.RAW),
            )
            for name, stored in self.weights.items()
        )

    def rest_nbytes(self, target: Format) -> int:
        """Bytes of everything that is never quantized."""
        return sum(target.rest(info) for info in self.rest)


def footprint_of(checkpoint: Checkpoint, layout: Layout) -> Footprint:
    """Account for every tensor of a checkpoint."""
    sources = set(layout.ignored)
    sources |= {source for weight in layout.details.values() for source in weight.sources}
    return Footprint(
        {name: _stored(checkpoint, weight) for name, weight in layout.details.items()},
        tuple(_rest(checkpoint, sources)),
    )


def _stored(checkpoint: Checkpoint, weight: Weight) -> Stored:
    scales = [scale_of(checkpoint, source) for source in weight.sources]
    raw_bytes = sum(checkpoint.tensors[source].loaded_nbytes for source in weight.sources)
    raw_bytes += sum(scale.nbytes for scale in scales if scale is not None)
    return Stored(weight.numel, weight.in_features, raw_bytes, stacked=weight.expert)


def _rest(checkpoint: Checkpoint, sources: set[str]) -> Iterator[TensorInfo]:
    tied = bool(checkpoint.config.get("tie_word_embeddings"))
    for name, info in checkpoint.tensors.items():
        mask = name.endswith((".attn.bias", ".attention.bias")) and len(info.shape) == 4
        copy = tied and name == "lm_head.weight"
        if name not in sources and not name.endswith(SCALES + BUFFERS) and not mask and not copy:
            yield info
