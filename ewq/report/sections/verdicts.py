"""What the gates said, and what could not be measured."""

from __future__ import annotations

from collections.abc import Sequence

from ewq.gating.gates import PRECEDENCE
from ewq.record import Record, Verdict
from ewq.report.document import Bullets, Paragraph, Part, Point, Section, Table
from ewq.report.subject import Reported

NO_BASELINE = " No-baseline: measured, but there is no limit and no earlier run to judge it by."


def section(subject: Reported) -> Section:
    """Counts of verdicts, the sentence behind each that is no pass, and gaps."""
    records = subject.records
    counted = {verdict: sum(r.verdict is verdict for r in records) for verdict in PRECEDENCE}
    counts = ", ".join(f"{number} {verdict.value}" for verdict, number in counted.items() if number)
    explained = NO_BASELINE * bool(counted[Verdict.NO_BASELINE])
    parts: list[Part] = [Paragraph(f"{len(records)} measurements: {counts}.{explained}")]
    points = [
        *(_told(r) for verdict in (Verdict.FAIL, Verdict.IMPROVED) for r in _of(records, verdict)),
        *_inconclusive(records),
        *(Point(text, "not measured", bad=True) for text in _gaps(subject)),
    ]
    if points:
        parts.append(Bullets(tuple(points)))
    parts += [table for table in (_reasons(records), _notes(records)) if table.rows]
    return Section("verdicts", "Verdicts", tuple(parts))


def _of(records: Sequence[Record], verdict: Verdict) -> list[Record]:
    return [record for record in records if record.verdict is verdict]


def _said(record: Record) -> str:
    return "; ".join(map(str, record.reasons)) or "no reason stored"


def _told(record: Record) -> Point:
    text = f"{record.variant}, {record.task}: {_said(record)}"
    return Point(text, record.verdict.value, bad=record.verdict is Verdict.FAIL)


def _inconclusive(records: Sequence[Record]) -> list[Point]:
    """One line a task: what is too little for one variant is mostly too little for all."""
    tasks: dict[str, list[str]] = {}
    for record in _of(records, Verdict.INCONCLUSIVE):
        tasks.setdefault(record.task, []).append(record.variant)
    return [
        Point(f"{task} of {', '.join(names)}", Verdict.INCONCLUSIVE.value, open_question=True)
        for task, names in tasks.items()
    ]


def _reasons(records: Sequence[Record]) -> Table:
    rows = tuple((r.variant, r.task, _said(r)) for r in _of(records, Verdict.INCONCLUSIVE))
    headings = ("Variant", "Task", "Reason")
    return Table(headings, rows, frozenset(headings), "Why these are inconclusive", folded=True)


def _gaps(subject: Reported) -> list[str]:
    """Selected benchmarks without a record, grouped by reason."""
    run = subject.run
    grouped: dict[str, list[str]] = {}
    for variant, task in run.lost:
        reason = run.failed.get(f"{variant}/{task}") or "no reason stored"
        grouped.setdefault(str(reason), []).append(f"{variant} {task}")
    return [f"{', '.join(names)}: {reason}" for reason, names in grouped.items()]


def _notes(records: Sequence[Record]) -> Table:
    """What tasks remarked on their own measurements, the same remark once."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for record in records:
        for note in record.remarks:
            grouped.setdefault((record.task, note), []).append(record.variant)
    rows = tuple((task, ", ".join(names), note) for (task, note), names in grouped.items())
    headings = ("Task", "Variants", "Remark")
    return Table(headings, rows, frozenset(headings), "Remarks on the measurements", folded=True)
