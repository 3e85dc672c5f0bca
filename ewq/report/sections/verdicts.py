"""What the gates said, and what could not be measured."""

from __future__ import annotations

from ewq.gating.gates import PRECEDENCE
from ewq.record import Verdict
from ewq.report.document import Bullets, Paragraph, Part, Point, Section
from ewq.report.subject import Reported

TOLD = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.IMPROVED)


def section(subject: Reported) -> Section:
    """Counts of verdicts, the sentence behind each that is no pass, and gaps."""
    records = list(subject.run.records.values())
    counted = {verdict: sum(r.verdict is verdict for r in records) for verdict in PRECEDENCE}
    counts = ", ".join(f"{number} {verdict.value}" for verdict, number in counted.items() if number)
    parts: list[Part] = [Paragraph(f"{len(records)} measurements: {counts}.")]
    told = sorted(
        (r for r in records if r.verdict in TOLD), key=lambda r: PRECEDENCE.index(r.verdict)
    )
    points = [
        Point(
            f"{record.variant}, {record.task}: {'; '.join(record.reasons) or 'no reason stored'}",
            record.verdict.value,
            open_question=record.verdict is Verdict.INCONCLUSIVE,
        )
        for record in told
    ]
    points += [Point(text, "not measured") for text in _gaps(subject)]
    points += [Point(text, "note") for text in _notes(subject)]
    if points:
        parts.append(Bullets(tuple(points)))
    return Section("verdicts", "Verdicts", tuple(parts))


def _gaps(subject: Reported) -> list[str]:
    """Selected benchmarks without a record, grouped by reason."""
    run = subject.run
    grouped: dict[str, list[str]] = {}
    for variant, task in run.lost:
        reason = run.failed.get(f"{variant}/{task}") or "no reason stored"
        grouped.setdefault(str(reason), []).append(f"{variant} {task}")
    return [f"{', '.join(names)}: {reason}" for reason, names in grouped.items()]


def _notes(subject: Reported) -> list[str]:
    """What tasks remarked on their own measurements, the same remark once."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for record in subject.run.records.values():
        for note in record.notes:
            grouped.setdefault((record.task, note), []).append(record.variant)
    return [f"{task} of {', '.join(names)}: {note}" for (task, note), names in grouped.items()]
