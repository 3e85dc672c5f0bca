"""The quantization plan: which precision each weight gets, and what the result will weigh.

A plan is a value: frozen, complete, and bound to one checkpoint by its
fingerprint. Reading one never needs the model.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ewq.errors import EwqError, PlanError
from ewq.measurement import Json
from ewq.precision import Precision

SCHEMA = 1
VOLATILE = frozenset({"ewq_version", "model"})
"""Fields that say who made the plan and under which name, not what it does."""
NAMED = 3
"""How many offending names an error shows."""


@dataclass(frozen=True)
class PlanBlock:
    """One decoder layer as the plan sees it."""

    index: int
    name: str
    numel: int
    """Quantizable weights in the block."""
    entropy: float
    """The scorer's value: bits for ``histogram``, nats for ``softmax``, else the scorer's own unit."""
    precision: Precision | None
    """``None`` where a tensor-wise plan gives the block's weights different precisions."""

    def to_json(self) -> dict[str, Json]:
        """The block as stored in ``blocks``."""
        return {
            "index": self.index,
            "name": self.name,
            "numel": self.numel,
            "entropy": self.entropy,
            "precision": "mixed" if self.precision is None else self.precision.value,
        }


class HasWeights(Protocol):
    """What a plan is checked against: a layout of blocks."""

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of every quantizable weight."""
        ...


class HasFingerprint(Protocol):
    """What a plan is checked against: an opened checkpoint."""

    @property
    def fingerprint(self) -> str:
        """``sha256:...`` of the checkpoint."""
        ...


@dataclass(frozen=True)
class QuantizationPlan:
    """Precisions for every quantizable weight of one checkpoint (plan file, schema 1)."""

    model: str
    fingerprint: str
    architecture: str
    scorer: str
    granularity: str
    """``block`` or ``tensor``."""
    rule: Mapping[str, Json]
    """``{"kind": "factor", "factor": 0.65}``, ``{"kind": "target_bpw", ...}``, ``uniform``, ..."""
    mean: float
    std: float
    thresholds: Mapping[str, float]
    """Least score for ``raw`` and for ``8bit``; empty for rules that have none."""
    blocks: tuple[PlanBlock, ...]
    weights: Mapping[str, Precision]
    bits_per_weight: float
    """Over all parameters of the model, scales and raw parts included."""
    size_bytes: int
    """Bytes of all tensors as stored in the target format."""
    ewq_version: str = ""
    target: str = "nf4"
    """Storage the sizes were counted for; see :mod:`ewq.formats`."""
    extra: Mapping[str, Json] = field(default_factory=dict, compare=False)

    def precision_of(self, weight_name: str) -> Precision:
        """Precision of a weight; anything the plan does not quantize is raw."""
        return self.weights.get(weight_name, Precision.RAW)

    @property
    def block_precisions(self) -> tuple[Precision | None, ...]:
        """Precision per block in order; ``None`` for a block of mixed precisions."""
        return tuple(block.precision for block in self.blocks)

    @property
    def digest(self) -> str:
        """``sha256:...`` of the canonical JSON without who made it and the model's spelling."""
        stable = {key: value for key, value in self.to_json().items() if key not in VOLATILE}
        text = json.dumps(stable, sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON types."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "architecture": self.architecture,
            "scorer": self.scorer,
            "granularity": self.granularity,
            "rule": dict(self.rule),
            "mean": self.mean,
            "std": self.std,
            "thresholds": dict(self.thresholds),
            "target": self.target,
            "blocks": [block.to_json() for block in self.blocks],
            "weights": {name: precision.value for name, precision in self.weights.items()},
            "bits_per_weight": self.bits_per_weight,
            "size_bytes": self.size_bytes,
            "ewq_version": self.ewq_version,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], source: str = "plan") -> QuantizationPlan:
        """Build a plan from its JSON; also reads ``{"plan": {"0": "raw", "1": "4-bit"}}``.

        Raises:
            PlanError: unknown or missing keys, another schema, an unknown precision.
        """
        raise NotImplementedError


def read_plan(path: str | Path) -> QuantizationPlan:
    """Read a plan file.

    Raises:
        PlanError: no such file, not JSON, or not a plan.
    """
    raise NotImplementedError


def write_plan(plan: QuantizationPlan, path: str | Path) -> Path:
    """Write a plan atomically: the file is complete or was never touched."""
    raise NotImplementedError


def check_plan(plan: QuantizationPlan, model: Any) -> None:
    """Refuse a plan that does not belong to ``model`` (a ``Checkpoint`` or a ``Layout``).

    Raises:
        PlanError: another fingerprint, weights the plan does not cover, or weights the model lacks.
    """
    raise NotImplementedError
