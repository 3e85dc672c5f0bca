"""The quantization plan: which precision each weight gets, and what the result will weigh.

A plan is a value, bound to one checkpoint by its fingerprint. Reading one never needs the model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ewq.checkpoint.layout import find_layout
from ewq.checkpoint.opening import Checkpoint
from ewq.codec import CodecError, decode, encode
from ewq.errors import PlanError
from ewq.files import write_text
from ewq.measurement import Json
from ewq.planning.sizes import footprint_of, format_of
from ewq.variants import Precision

SCHEMA, SCHEMA_OF_TYPES = 1, 2
BITSANDBYTES = "bitsandbytes"
"""Target of plans of types that transformers applies."""
PRECISION_OF_TYPE = {
    "raw": Precision.RAW,
    "int8": Precision.EIGHT_BIT,
    "nf4": Precision.FOUR_BIT,
    "fp4": Precision.FOUR_BIT,
}
VOLATILE = frozenset({"ewq_version", "model"})
"""Fields that say who made the plan and under which name, not what it does."""
NAMED = 3
"""How many offending names an error shows."""
MIXED = "mixed"
"""How the file tells that a block's weights have different precisions."""
POC_PRECISIONS = {of.value: of for of in Precision} | {
    "8-bit": Precision.EIGHT_BIT,
    "4-bit": Precision.FOUR_BIT,
}


@dataclass(frozen=True)
class PlanBlock:
    """One decoder layer as the plan sees it."""

    index: int
    name: str
    numel: int
    """Quantizable weights in the block."""
    entropy: float
    """The score: bits for ``histogram``, nats for ``softmax``, else the scorer's own unit."""
    precision: Precision | None
    """``None`` where a tensor-wise plan gives the block's weights different precisions."""
    size_bytes: int = 0
    """Of the block's quantizable weights in the target format; 0 where the plan does not say."""


@dataclass(frozen=True)
class ExpectedKld:
    """Divergence from the unquantized model that a plan was made for, in nats per token."""

    value: float
    stderr: float
    """Over the sequences of the calibration text."""


@dataclass(frozen=True)
class QuantizationPlan:
    """Precisions for every quantizable weight of one checkpoint (plan file, schema 1).

    A plan of types (schema 2) names a storage type for every tensor instead.
    """

    model: str
    fingerprint: str
    architecture: str
    scorer: str
    granularity: str
    """``block``, ``tensor`` or ``kind``."""
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
    """Storage the sizes were counted for; see :mod:`ewq.planning.sizes`."""
    types: Mapping[str, str] = field(default_factory=dict)
    """Of every tensor: ggml types by the file's own names, or ``raw``, ``int8``, ``nf4``,
    ``fp4`` by those of the loaded model. Empty for a plan of precisions."""
    expected_kld: ExpectedKld | None = None
    calibration: str = ""
    """``sha256:...`` of the token sequences that the expectation comes from."""

    @property
    def digest(self) -> str:
        """``sha256:...`` of the canonical JSON without who made it and the model's spelling."""
        stable = {key: value for key, value in self.to_json().items() if key not in VOLATILE}
        text = json.dumps(stable, sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON types."""
        data: dict[str, Any] = {"schema": SCHEMA, **encode(self)}
        types = data.pop("types")
        if types:
            data |= {"schema": SCHEMA_OF_TYPES, "weights": types}
        else:
            del data["expected_kld"], data["calibration"]
        for block in data["blocks"]:
            block["precision"] = block["precision"] or MIXED
        return data

    @classmethod
    def from_json(cls, data: Any, source: str = "plan") -> QuantizationPlan:
        """Build a plan from its JSON (also ``{"plan": {"0": "raw", "1": "4-bit"}}``).

        A PlanError of unknown or missing keys, another schema, an unknown precision.
        """
        if not isinstance(data, Mapping):
            raise PlanError(f"{source} is not a plan: it holds no JSON object")
        if "schema" not in data and isinstance(data.get("plan"), Mapping):
            return _from_poc(data, source)
        if data.get("schema") not in (SCHEMA, SCHEMA_OF_TYPES):
            known = f"{SCHEMA} and {SCHEMA_OF_TYPES}"
            raise PlanError(f"{source} has schema {data.get('schema')!r}; this ewq reads {known}")
        plain = {key: value for key, value in data.items() if key != "schema"}
        if data["schema"] == SCHEMA_OF_TYPES:
            plain |= {"types": plain.get("weights"), "weights": {}}
        if isinstance(plain.get("blocks"), list):
            plain["blocks"] = [_without_mixed(block) for block in plain["blocks"]]
        try:
            plan = decode(cls, plain)
            # Types of bitsandbytes are precisions too, by which they are applied.
            applied = plan.types if plan.target == BITSANDBYTES else {}
            return replace(plan, weights=plan.weights or precisions_of(applied))
        except CodecError as error:
            raise PlanError(f"{source} is damaged: {error}") from error


def precisions_of(types: Mapping[str, str]) -> dict[str, Precision]:
    """The quantized ones among bitsandbytes' types; a CodecError of a type it does not have."""
    known = ", ".join(PRECISION_OF_TYPE)
    for name, kind in types.items():
        if kind not in PRECISION_OF_TYPE:
            raise CodecError(f"weights.{name}: expected one of {known}, found {kind!r}")
    found = {name: PRECISION_OF_TYPE[kind] for name, kind in types.items()}
    return {name: of for name, of in found.items() if of is not Precision.RAW}


def _without_mixed(block: Any) -> Any:
    if isinstance(block, Mapping) and block.get("precision") == MIXED:
        return {**block, "precision": None}
    return block


def _from_poc(data: Mapping[str, Any], source: str) -> QuantizationPlan:
    """Precisions by block index and nothing else: it can be shown and compared, not applied."""
    blocks = []
    for key, value in data["plan"].items():
        precision = POC_PRECISIONS.get(str(value))
        if not str(key).isdecimal() or precision is None:
            raise PlanError(f"{source}: block {key!r} has precision {value!r}, which is unknown")
        blocks.append(PlanBlock(int(key), f"block {int(key)}", 0, math.nan, precision))
    return QuantizationPlan(
        model=str(data.get("model_id", data.get("model", "(unknown)"))),
        fingerprint="",
        architecture="",
        scorer="(unknown)",
        granularity="block",
        rule={"kind": "poc"},
        mean=math.nan,
        std=math.nan,
        thresholds={},
        blocks=tuple(sorted(blocks, key=lambda block: block.index)),
        weights={},
        bits_per_weight=math.nan,
        size_bytes=0,
    )


def read_plan(path: str | Path) -> QuantizationPlan:
    """Read a plan file, ewq's own or the proof of concept's; a PlanError of anything else."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PlanError(f"cannot read the plan {path}: {error}") from error
    return QuantizationPlan.from_json(data, str(path))


def write_plan(plan: QuantizationPlan, path: str | Path) -> Path:
    """Write a plan whole; where that fails an EwqError is raised and a former file stays."""
    return write_text(Path(path), json.dumps(plan.to_json(), indent=1) + "\n")


def check_plan(plan: QuantizationPlan, model: Checkpoint) -> None:
    """Raise a PlanError of a plan for another fingerprint, or for more or fewer weights."""
    if not plan.weights and not plan.types:
        raise PlanError("the plan names blocks but no weights; make it again with `ewq plan`")
    # Types of a GGUF file have its own names, and are compared with it.
    applied = plan.types if plan.target == BITSANDBYTES else {}
    if applied or not plan.types:
        wanted, given = find_layout(model).weights, applied or plan.weights
        known = set(wanted)
        missing = [name for name in wanted if name not in given]
        unknown = [n for n in given if n not in known and applied.get(n) != "raw"]
        for found, what in ((missing, "does not cover"), (unknown, "names, but the model lacks,")):
            if found:
                raise PlanError(
                    f"the plan for {plan.model} {what} {len(found)} weights: "
                    f"{', '.join(found[:NAMED])}; it belongs to another model"
                )
    if plan.fingerprint != model.fingerprint:
        raise PlanError(
            f"the plan was made for {plan.model} ({plan.fingerprint[:19]}…), not for "
            f"{model.model} ({model.fingerprint[:19]}…); plan this model with `ewq plan`"
        )


def require_target(plan: QuantizationPlan, target: str) -> None:
    """Raise a PlanError of a plan of types that belong to the other engine."""
    if plan.types and plan.target != target:
        made = f"the plan has types of {plan.target}, not of {target}"
        raise PlanError(f"{made}; make one with `ewq plan --for {target}`")


def check_budget(plan: QuantizationPlan, checkpoint: Checkpoint, target: str) -> None:
    """Raise a PlanError of a plan for a budget that it exceeds in the format it is applied in.

    ``target`` is that format, of :data:`ewq.planning.sizes.FORMATS`.
    """
    size, bits = plan.rule.get("target_size_bytes"), plan.rule.get("target_bpw")
    if plan.types or plan.target == target or (size is None and bits is None):
        return
    if isinstance(size or bits, bool) or not isinstance(size or bits, int | float):
        raise PlanError(f"the plan's budget is {size or bits!r}, which is no number; plan again")
    footprint = footprint_of(checkpoint, find_layout(checkpoint))
    made_bytes = footprint.nbytes(plan.weights, format_of(target))
    budget_bytes = size if isinstance(size, int) else int(float(str(bits)) * footprint.numel / 8)
    if made_bytes > budget_bytes:
        raise PlanError(
            f"the plan was made for at most {budget_bytes} bytes as {plan.target}, where it takes "
            f"{plan.size_bytes}, but takes {made_bytes} as {target}: plan with --for {target}"
        )
