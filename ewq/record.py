"""The stored record of one benchmark: ``extra_info["ewq"]`` (schema 2; schema 1 is read)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from ewq.codec import decode, encode
from ewq.errors import InputError, MeasurementError
from ewq.measurement import NO_ITEMS, Doubt, Items, Json, Metric
from ewq.record_schema1 import upgraded

SCHEMA = 2
RecordKey = tuple[str, str]
"""``(variant, task)``: what identifies a record within a run."""


class Verdict(StrEnum):
    """What a gate says about one record."""

    PASS = "pass"
    FAIL = "fail"
    IMPROVED = "improved"
    INCONCLUSIVE = "inconclusive"
    NO_BASELINE = "no-baseline"


@dataclass(frozen=True)
class Reason:
    """What a gate says about one metric, or about a record as a whole."""

    verdict: Verdict
    text: str
    """A sentence with the values and the tolerance."""
    statistic: str = ""
    """The test behind the verdict."""
    metric: str = ""
    """Empty where the reason is about the whole record."""
    worse: bool = False
    """Whether the metric is worse than its baseline by more than is tolerated, certain or not."""

    def __str__(self) -> str:
        return f"{self.text} [{self.statistic}]" if self.statistic else self.text


@dataclass(frozen=True)
class Record:
    """One task measured on one variant of one model."""

    model: str
    """The model as people name it: hub id, folder or embedded label."""
    fingerprint: str
    """``sha256:...`` of the checkpoint the variant was made from."""
    variant: str
    task: str
    tier: str
    settings: Mapping[str, Json]
    """Protocol and data; two records are comparable only where these are equal."""
    metrics: Mapping[str, Metric]
    items: Items = NO_ITEMS
    plan: str | None = None
    """Digest of the plan applied, where there is one."""
    verdict: Verdict = Verdict.NO_BASELINE
    reasons: tuple[Reason, ...] = ()
    """Why the verdict is what it is; empty for a plain pass."""
    doubts: tuple[Doubt, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences for people. Nothing is decided by them."""
    side: Mapping[str, Json] = field(default_factory=dict)
    """Bulky extras for reports, never compared."""

    @property
    def key(self) -> RecordKey:
        """What identifies the record within a run: ``(variant, task)``."""
        return (self.variant, self.task)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Every sentence about the measurement: doubts, then notes."""
        return (*(doubt.text for doubt in self.doubts), *self.notes)

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return {"schema": SCHEMA, **encode(self), "items": self.items.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Read a stored record; an InputError where it is damaged or of another schema."""
        schema = data.get("schema")
        if schema not in (1, SCHEMA):
            raise InputError(f"record has schema {schema!r}; this ewq reads 1 and {SCHEMA}")
        try:
            data = upgraded(data) if schema == 1 else data
            plain = {key: value for key, value in data.items() if key not in ("schema", "items")}
            return replace(decode(cls, plain), items=Items.from_json(data["items"]))
        except (KeyError, TypeError, ValueError, MeasurementError) as error:
            raise InputError(f"stored record is damaged: {error}") from error
