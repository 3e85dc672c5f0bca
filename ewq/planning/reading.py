"""Plans from JSON: schema 1, and the format of the proof of concept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ewq.errors import PlanError
from ewq.planning.plan import SCHEMA, PlanBlock, QuantizationPlan
from ewq.precision import Precision

KEYS = frozenset(
    {
        "schema",
        "model",
        "fingerprint",
        "architecture",
        "scorer",
        "granularity",
        "rule",
        "mean",
        "std",
        "thresholds",
        "blocks",
        "weights",
        "bits_per_weight",
        "size_bytes",
        "ewq_version",
    }
)
OPTIONAL = frozenset({"target"})
BLOCK_KEYS = frozenset({"index", "name", "numel", "entropy", "precision"})
BLOCK_OPTIONAL = frozenset({"size_bytes"})
POC_PRECISIONS = {
    "raw": Precision.RAW,
    "8-bit": Precision.EIGHT_BIT,
    "4-bit": Precision.FOUR_BIT,
    "8bit": Precision.EIGHT_BIT,
    "4bit": Precision.FOUR_BIT,
}
NAMED = 3


def plan_from_json(data: Any, source: str) -> QuantizationPlan:  # noqa: ANN401 - parsed JSON
    """A plan from parsed JSON; ``source`` names it in errors.

    Raises:
        PlanError: not a plan, unknown or missing keys, or an unknown precision.
    """
    if not isinstance(data, Mapping):
        raise PlanError(f"{source} is not a plan: it holds no JSON object")
    if "schema" not in data and isinstance(data.get("plan"), Mapping):
        return _from_poc(data, source)
    if data.get("schema") != SCHEMA:
        raise PlanError(f"{source} has schema {data.get('schema')!r}; this ewq reads {SCHEMA}")
    _check_keys(data, KEYS, OPTIONAL, source)
    try:
        return _from_schema_1(data, source)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise PlanError(f"{source} is damaged: {error}") from error


def _from_schema_1(data: Mapping[str, Any], source: str) -> QuantizationPlan:
    return QuantizationPlan(
        model=str(data["model"]),
        fingerprint=str(data["fingerprint"]),
        architecture=str(data["architecture"]),
        scorer=str(data["scorer"]),
        granularity=str(data["granularity"]),
        rule=dict(data["rule"]),
        mean=float(data["mean"]),
        std=float(data["std"]),
        thresholds={key: float(value) for key, value in data["thresholds"].items()},
        blocks=tuple(_block(entry, source) for entry in data["blocks"]),
        weights={
            str(name): _precision(value, f"{source}: weight {name}")
            for name, value in data["weights"].items()
        },
        bits_per_weight=float(data["bits_per_weight"]),
        size_bytes=int(data["size_bytes"]),
        ewq_version=str(data["ewq_version"]),
        target=str(data.get("target", "nf4")),
    )


def _check_keys(
    data: Mapping[str, Any], required: frozenset[str], optional: frozenset[str], source: str
) -> None:
    missing = sorted(required - data.keys())
    unknown = sorted(data.keys() - required - optional)
    for names, what in ((missing, "lacks"), (unknown, "has unknown")):
        if names:
            raise PlanError(f"{source} {what} keys: {', '.join(names[:NAMED])}")


def _block(entry: Mapping[str, Any], source: str) -> PlanBlock:
    _check_keys(entry, BLOCK_KEYS, BLOCK_OPTIONAL, f"{source}: a block")
    precision = entry["precision"]
    return PlanBlock(
        index=int(entry["index"]),
        name=str(entry["name"]),
        numel=int(entry["numel"]),
        entropy=float(entry["entropy"]),
        precision=None if precision == "mixed" else _precision(precision, f"{source}: a block"),
        size_bytes=int(entry.get("size_bytes", 0)),
    )


def _precision(value: object, where: str) -> Precision:
    try:
        return Precision(str(value))
    except ValueError:
        allowed = ", ".join(Precision)
        raise PlanError(f"{where} has precision {value!r}; known: {allowed}") from None


def _from_poc(data: Mapping[str, Any], source: str) -> QuantizationPlan:
    """``{"plan": {"0": "raw", "1": "4-bit"}}``: precisions by block index, and nothing else.

    Weights, entropies and sizes are unknown, so such a plan can be shown and
    compared but not applied.
    """
    blocks = []
    for key, value in data["plan"].items():
        precision = POC_PRECISIONS.get(str(value))
        if not str(key).isdecimal() or precision is None:
            raise PlanError(f"{source}: block {key!r} has precision {value!r}, which is unknown")
        blocks.append(PlanBlock(int(key), f"block {int(key)}", 0, math.nan, precision))
    blocks.sort(key=lambda block: block.index)
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
        blocks=tuple(blocks),
        weights={},
        bits_per_weight=math.nan,
        size_bytes=0,
    )
