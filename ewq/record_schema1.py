"""Records of schema 1 as schema 2 writes them: items without field names, doubts within notes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ewq.measurement import DoubtKind
from ewq.variants import engine_of

_PERPLEXITY = ["domain", "nll", "tokens", "bytes", "document"]
_DIVERGENCE = [
    *("domain", "tokens", "kld", "same_top", "delta_p_squared", "nll_change"),
    "document",
]
_DOUBT_WORDS = (
    ("noisy ratio", DoubtKind.OTHER_SESSION),
    ("throttl", DoubtKind.THROTTLING),
    ("nois", DoubtKind.NOISE),
    ("chance", DoubtKind.CHANCE),
)
"""Words by which schema 1 told that a note was a doubt."""
_WORSE = ("against the baseline, ", ": worse")
"""How a reason began, and what it held, where a metric was worse than tolerated."""


def upgraded(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored record in the shape of schema 2; a KeyError, TypeError or ValueError if damaged."""
    notes = stored.get("notes", ())
    doubts = {note: kind for note in notes if (kind := _doubt_kind(note))}
    return {
        **stored,
        "settings": _settings(stored["variant"], stored["settings"]),
        "items": _items(stored["task"], stored["items"]),
        "reasons": [_reason(text, stored["verdict"]) for text in stored["reasons"]],
        "doubts": [{"kind": kind.value, "text": note} for note, kind in doubts.items()],
        "notes": [note for note in notes if note not in doubts],
    }


def _settings(variant: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without what schema 1 wrote on llama.cpp's records although it was transformers' own."""
    foreign = ("batch_tokens", "dtype") if engine_of(variant) == "llama.cpp" else ()
    return {key: value for key, value in settings.items() if key not in foreign}


def _doubt_kind(note: str) -> DoubtKind | None:
    return next((kind for word, kind in _DOUBT_WORDS if word in note.lower()), None)


def _reason(text: str, verdict: str) -> dict[str, Any]:
    """Which metric a reason was about, and its own verdict, schema 1 did not say."""
    start, inside = _WORSE
    sentence, _, statistic = text.removesuffix("]").partition(" [")
    worse = text.startswith(start) and inside in text
    return {"verdict": verdict, "text": sentence, "statistic": statistic, "worse": worse}


def _items(task: str, items: Any) -> dict[str, Any]:
    return _ITEMS[task](items) if items and task in _ITEMS else {"fields": [], "rows": []}


def _times(batches: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [int(name.removeprefix("b")), first, decode]
        for name, times in batches.items()
        for first, decode in zip(times["first_token_s"], times["decode_s"], strict=True)
    ]
    return {"fields": ["batch_size", "first_token_s", "decode_s"], "rows": rows}


def _letters(items: str) -> dict[str, Any]:
    return {"fields": ["answer"], "rows": items}


_ITEMS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "mmlu": _letters,
    "mmlu_cloze": _letters,
    "noise_floor": _letters,
    "perplexity": lambda rows: {"fields": _PERPLEXITY, "rows": rows},
    "divergence": lambda rows: {"fields": _DIVERGENCE, "rows": rows},
    "throughput": _times,
    "samples": lambda texts: {"fields": ["prompt", "tokens"], "rows": list(texts.items())},
}
