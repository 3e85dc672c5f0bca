"""The stored record of one benchmark: ``extra_info["ewq"]`` (schema 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from ewq.errors import InputError
from ewq.measurement import Json, Metric

SCHEMA = 1


class Verdict(StrEnum):
    """What a gate says about one record."""

    PASS = "pass"
    FAIL = "fail"
    IMPROVED = "improved"
    INCONCLUSIVE = "inconclusive"
    NO_BASELINE = "no-baseline"


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
    items: Json
    plan: str | None = None
    """Digest of the plan applied, where there is one."""
    verdict: Verdict = Verdict.NO_BASELINE
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    side: Mapping[str, Json] | None = None
    """Bulky extras for reports, never compared."""

    @property
    def key(self) -> tuple[str, str]:
        """What identifies the record within a run: ``(variant, task)``."""
        return (self.variant, self.task)

    def judged(self, verdict: Verdict, reasons: tuple[str, ...]) -> Record:
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
            "items": self.items,
            "verdict": self.verdict.value,
            "reasons": list(self.reasons),
            "notes": list(self.notes),
            "side": dict(self.side or {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Read a stored record.

        Raises:
            InputError: another schema, or a key that every record has is missing.
        """
        if data.get("schema") != SCHEMA:
            raise InputError(f"record has schema {data.get('schema')!r}; this ewq reads {SCHEMA}")
        try:
            metrics = {key: Metric.from_json(value) for key, value in data["metrics"].items()}
            return cls(
                model=data["model"],
                fingerprint=data["fingerprint"],
                variant=data["variant"],
                task=data["task"],
                tier=data["tier"],
                settings=data["settings"],
                metrics=metrics,
                items=data["items"],
                plan=data.get("plan"),
                verdict=Verdict(data["verdict"]),
                reasons=tuple(data["reasons"]),
                notes=tuple(data.get("notes", ())),
                side=data.get("side"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"stored record is damaged: {error!r}") from error
