"""The stored record of one benchmark: ``extra_info["ewq"]`` (schema 2; schema 1 is read)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from ewq.errors import InputError
from ewq.measurement import NO_ITEMS, Doubt, Items, Json, Metric

SCHEMA = 2


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

    def to_json(self) -> dict[str, Json]:
        """The reason as plain JSON types."""
        return {**asdict(self), "verdict": self.verdict.value}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Reason:
        """The reason that :meth:`to_json` stored.

        Raises:
            KeyError, TypeError, ValueError: other keys, or an unknown verdict.
        """
        return cls(**{**stored, "verdict": Verdict(stored["verdict"])})


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
    def key(self) -> tuple[str, str]:
        """What identifies the record within a run: ``(variant, task)``."""
        return (self.variant, self.task)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Every sentence about the measurement: doubts, then notes."""
        return (*(doubt.text for doubt in self.doubts), *self.notes)

    def judged(self, verdict: Verdict, reasons: tuple[Reason, ...]) -> Record:
        """The same record with a verdict."""
        return replace(self, verdict=verdict, reasons=reasons)

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON types; valid JSON by construction (no NaN, no NumPy)."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "variant": self.variant,
            "task": self.task,
            "tier": self.tier,
            "settings": dict(self.settings),
            "plan": self.plan,
            "metrics": {key: metric.to_json() for key, metric in self.metrics.items()},
            "items": self.items.to_json(),
            "verdict": self.verdict.value,
            "reasons": [reason.to_json() for reason in self.reasons],
            "doubts": [doubt.to_json() for doubt in self.doubts],
            "notes": list(self.notes),
            "side": dict(self.side),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Read a stored record.

        Raises:
            InputError: another schema, or a key that every record has is missing.
        """
        from ewq.record_schema1 import upgraded

        if data.get("schema") not in (1, SCHEMA):
            raise InputError(
                f"record has schema {data.get('schema')!r}; this ewq reads 1 and {SCHEMA}"
            )
        try:
            data = upgraded(data) if data["schema"] == 1 else data
            metrics = {key: Metric.from_json(value) for key, value in data["metrics"].items()}
            return cls(
                model=data["model"],
                fingerprint=data["fingerprint"],
                variant=data["variant"],
                task=data["task"],
                tier=data["tier"],
                settings=data["settings"],
                metrics=metrics,
                items=Items.from_json(data["items"]),
                plan=data.get("plan"),
                verdict=Verdict(data["verdict"]),
                reasons=tuple(Reason.from_json(reason) for reason in data["reasons"]),
                doubts=tuple(Doubt.from_json(doubt) for doubt in data["doubts"]),
                notes=tuple(data.get("notes", ())),
                side=data.get("side") or {},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"stored record is damaged: {error!r}") from error
