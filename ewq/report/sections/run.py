"""The run itself: what its gates said, what is missing, where and how it was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ewq.gating.doubts import doubt_about
from ewq.gating.gates import PRECEDENCE
from ewq.measurement import DoubtKind
from ewq.record import Record, Verdict
from ewq.report.document import Bullets, Paragraph, Part, Point, Section, Table
from ewq.report.rows import ReportedRun, group_by_text

_LONGEST = 160
"""Characters of a setting that are shown; longer ones are lists of prompts."""
_CAUSES = {
    DoubtKind.NOISE: "noisy clock",
    DoubtKind.THROTTLING: "throttled GPU",
    DoubtKind.BUSY: "other programs kept the processor busy",
    DoubtKind.OTHER_SESSION: "the reference's speed is from another session",
    DoubtKind.DECODE_MODE: "another way of decoding than the reference",
    DoubtKind.CHANCE: "no better than guessing",
}
_TOO_FEW = "too few items to decide"
_WORDS = {Verdict.NO_BASELINE: "not gated"}


def verdicts(shown: ReportedRun) -> Section:
    """Counts of verdicts, the sentence behind each that is no pass, and gaps."""
    records = shown.records
    counts = f"{len(records)} measurements: {verdict_counts(records)}."
    gaps = (Point(text, "not measured", bad=True) for text in _gaps(shown))
    points = (*verdict_points(records), *gaps)
    parts: list[Part] = [Paragraph(counts), *([Bullets(points)] if points else [])]
    parts += [table for table in (_reasons(records), _remarks(records)) if table.rows]
    return Section("verdicts", "Verdicts", tuple(parts))


def verdict_counts(records: Sequence[Record]) -> str:
    """``1 fail, 2 not gated, 20 pass``."""
    counted = {verdict: sum(r.verdict is verdict for r in records) for verdict in PRECEDENCE}
    return ", ".join(
        f"{number} {_WORDS.get(verdict, verdict.value)}"
        for verdict, number in counted.items()
        if number
    )


def verdict_points(records: Sequence[Record]) -> list[Point]:
    """What failed or improved, and each cause of what is inconclusive once; no statistics."""
    certain = _having(records, Verdict.FAIL, Verdict.IMPROVED)
    return [*map(_judged, certain), *_inconclusive(records)]


def _having(records: Sequence[Record], *verdicts: Verdict) -> list[Record]:
    return [r for verdict in verdicts for r in records if r.verdict is verdict]


def _judged(record: Record) -> Point:
    reasons = "; ".join(reason.text for reason in record.reasons) or "no reason stored"
    text = f"{record.variant}, {record.task}: {reasons}"
    return Point(text, record.verdict.value, bad=record.verdict is Verdict.FAIL)


def _inconclusive(records: Sequence[Record]) -> list[Point]:
    """Each cause once, with the task and all variants it is about."""
    found = group_by_text(_having(records, Verdict.INCONCLUSIVE), _causes)
    return [
        Point(f"{task}: {cause}: {variants}", Verdict.INCONCLUSIVE.value, open_question=True)
        for task, cause, variants in found
    ]


def _causes(record: Record) -> Sequence[str]:
    """Why a record is inconclusive, in words that are the same for all variants."""
    doubts = (doubt_about(reason.metric, record) for reason in record.reasons)
    return [*dict.fromkeys(_CAUSES[doubt.kind] for doubt in doubts if doubt)] or [_TOO_FEW]


def _reasons(records: Sequence[Record]) -> Table:
    """Every reason with its statistic."""
    judged = _having(records, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.IMPROVED)
    rows = group_by_text(judged, lambda record: [str(reason) for reason in record.reasons])
    return _folded("Reasons with their statistics", "Reason", rows)


def _remarks(records: Sequence[Record]) -> Table:
    """What tasks remarked on their own measurements."""
    rows = group_by_text(records, lambda record: record.remarks)
    return _folded("Remarks on the measurements", "Remark", rows)


def _folded(title: str, heading: str, rows: list[tuple[str, str, str]]) -> Table:
    headings = ("Task", "Variants", heading)
    body = tuple((task, variants, text) for task, text, variants in rows)
    return Table(headings, body, frozenset(headings), title, folded=True)


def _gaps(shown: ReportedRun) -> list[str]:
    """Selected benchmarks without a record, grouped by reason."""
    run = shown.run
    grouped: dict[str, list[str]] = {}
    for variant, task in run.lost:
        reason = run.failed.get(f"{variant}/{task}") or "no reason stored"
        grouped.setdefault(str(reason), []).append(f"{variant} {task}")
    return [f"{', '.join(names)}: {reason}" for reason, names in grouped.items()]


def protocol(shown: ReportedRun) -> Section:
    """What somebody needs to repeat the run: its environment, and each task's settings."""
    run, first = shown.run, shown.first
    facts = {
        "model": first.model,
        "fingerprint": first.fingerprint,
        "tier": first.tier,
        "stored": f"{run.datetime:%Y-%m-%d %H:%M} UTC",
        "commit": (run.commit or "none") + " with local changes" * run.dirty,
        "branch": run.branch or "none",
        "file": run.path.name,
    }
    machine = {key: value for key, value in run.machine.items() if value is not None}
    parts = [_pairs("Run", facts), *([_pairs("Environment", machine)] if machine else [])]
    settings = _settings(shown.records)
    parts += [settings] if settings.rows else []
    return Section("protocol", "Environment and protocol", tuple(parts))


def _pairs(title: str, facts: Mapping[str, Any]) -> Table:
    rows = tuple((str(key), _setting_text(key, value)) for key, value in facts.items())
    return Table(("Setting", "Value"), rows, frozenset({"Value"}), title)


def _settings(records: Sequence[Record]) -> Table:
    """Each value of a setting once, with the tasks and variants that have it."""
    having: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        for key, value in record.settings.items():
            having.setdefault((key, _setting_text(key, value)), []).append(record)
    rows = []
    for (key, text), own in sorted(having.items()):
        tasks = dict.fromkeys(record.task for record in own)
        alike = [record for record in records if record.task in tasks]
        variants = dict.fromkeys(record.variant for record in own)
        everyone = len(own) == len(alike)
        everywhere = len(own) == len(records)
        rows.append(
            (
                key,
                text,
                "all" if everywhere else ", ".join(tasks),
                "all" if everyone else ", ".join(variants),
            )
        )
    headings = ("Setting", "Value", "Tasks", "Variants")
    return Table(headings, tuple(rows), frozenset(headings), "Settings of the tasks")


def _setting_text(key: str, value: Any) -> str:
    if key == "subjects" and isinstance(value, list):
        return f"{len(value)} subjects, {sum(int(n) for _, n in value)} questions"
    if key.endswith("_bytes") and isinstance(value, int):
        return f"{value / 1e9:.1f} GB"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
