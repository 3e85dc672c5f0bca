"""The stored record of one benchmark: ``extra_info["ewq"]`` (schema 2; schema 1 is read)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from ewq.codec import decode, encode
from ewq.errors import InputError, MeasurementError
from ewq.measurement import NO_ITEMS, Doubt, DoubtKind, Items, Json, Metric
from ewq.variants import LLAMA_CPP, engine_of

SCHEMA = 2
_SCHEMA1_FIELDS = {
    **{task: ["answer"] for task in ("mmlu", "mmlu_cloze", "noise_floor")},
    "perplexity": ["domain", "nll", "tokens", "bytes", "document"],
    "divergence": [
        *("domain", "tokens", "kld", "same_top", "delta_p_squared", "nll_change"),
        "document",
    ],
    "throughput": ["batch_size", "first_token_s", "decode_s"],
    "samples": ["prompt", "tokens"],
}
_DOUBT_WORDS = (
    ("noisy ratio", DoubtKind.OTHER_SESSION),
    ("throttl", DoubtKind.THROTTLING),
    ("nois", DoubtKind.NOISE),
    ("chance", DoubtKind.CHANCE),
)
"""Words by which schema 1 told that a note was a doubt."""
RecordKey = tuple[str, str]


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
    statistic: str = ""
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
    verdict: Verdict = Verdict.NO_BASELINE
    reasons: tuple[Reason, ...] = ()
    doubts: tuple[Doubt, ...] = ()
    notes: tuple[str, ...] = ()
    side: Mapping[str, Json] = field(default_factory=dict)

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
            data = _upgraded(data) if schema == 1 else data
            plain = {key: value for key, value in data.items() if key not in ("schema", "items")}
            return replace(decode(cls, plain), items=Items.from_json(data["items"]))
        except (KeyError, TypeError, ValueError, MeasurementError) as error:
            raise InputError(f"stored record is damaged: {error}") from error


def _upgraded(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored record in the shape of schema 2; a KeyError, TypeError or ValueError if damaged."""
    notes = stored.get("notes", ())
    words = {note: [of for word, of in _DOUBT_WORDS if word in note.lower()] for note in notes}
    # What it wrote on llama.cpp's records although it was transformers' own.
    foreign = ("batch_tokens", "dtype") if engine_of(stored["variant"]) == LLAMA_CPP else ()
    return {
        **stored,
        "settings": {k: value for k, value in stored["settings"].items() if k not in foreign},
        "items": _items(stored["task"], stored["items"]),
        "reasons": [_reason(text, stored["verdict"]) for text in stored["reasons"]],
        "doubts": [{"kind": of[0].value, "text": note} for note, of in words.items() if of],
        "notes": [note for note in notes if not words[note]],
    }


def _reason(text: str, verdict: str) -> dict[str, Any]:
    """Which metric a reason was about, and its own verdict, schema 1 did not say."""
    sentence, _, statistic = text.removesuffix("]").partition(" [")
    worse = text.startswith("against the baseline, ") and ": worse" in text
    return {"verdict": verdict, "text": sentence, "statistic": statistic, "worse": worse}


def _items(task: str, items: Any) -> dict[str, Any]:
    if not items or task not in _SCHEMA1_FIELDS:
        return {"fields": [], "rows": []}
    if task == "throughput":
        items = [
            [int(name.removeprefix("b")), first, decode]
            for name, times in items.items()
            for first, decode in zip(times["first_token_s"], times["decode_s"], strict=True)
        ]
    rows = list(items.items()) if task == "samples" else items
    return {"fields": _SCHEMA1_FIELDS[task], "rows": rows}
