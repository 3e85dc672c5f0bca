"""The same prompts continued by every variant, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ewq.report.document import Excerpt, Excerpts, Paragraph, Section
from ewq.report.rows import VariantRow
from ewq.report.subject import Reported


def section(subject: Reported) -> Section | None:
    """One group for each prompt; what differs from FP16's text is told apart."""
    texts = {row.variant: found for row in subject.rows if (found := _texts(row))}
    if not texts:
        return None
    prompts = {name: sample["prompt"] for own in texts.values() for name, sample in own.items()}
    base = texts.get(subject.reference.variant, {}) if subject.reference else {}
    compared = "From the first difference from FP16's text on, text is marked. " * bool(base)
    intro = Paragraph(
        f"Greedy decoding. {compared}A difference is not a fault: judge by reading. "
        "Figures above rest on many more tokens."
    )
    groups = tuple(
        Excerpts(name, prompt, tuple(_excerpts(name, texts, base)))
        for name, prompt in prompts.items()
    )
    return Section("samples", "Samples", (intro, *groups))


def _texts(row: VariantRow) -> dict[str, dict[str, str]]:
    record = row.records.get("samples")
    stored: Any = record.side.get("samples") if record else None
    listed = stored if isinstance(stored, list) else []
    return {
        str(sample.get("name")): {
            "prompt": str(sample.get("prompt", "")),
            "text": str(sample.get("text", "")),
        }
        for sample in listed
        if isinstance(sample, Mapping)
    }


def _excerpts(
    name: str, texts: Mapping[str, Mapping[str, Mapping[str, str]]], base: Mapping[str, Any]
) -> list[Excerpt]:
    told = base[name]["text"] if name in base else None
    found = []
    for variant, own in texts.items():
        if name not in own:
            continue
        text = own[name]["text"]
        if own is base or told is None:
            found.append(Excerpt(variant, text, ""))
            continue
        length = _common(told, text)
        note = "same as FP16" if text == told else ""
        found.append(Excerpt(variant, text[:length], text[length:], note))
    return found


def _common(one: str, other: str) -> int:
    """Length of the common beginning in characters."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))
