"""The run as a whole: which variant to take, what its gates said, where and how it was measured."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ewq.gating.change import doubt_about
from ewq.gating.gates import PRECEDENCE
from ewq.measurement import DoubtKind
from ewq.record import Record, Verdict
from ewq.report.document import Bullets, Paragraph, Part, Point, Section, Table
from ewq.report.recommendations import losses, recommendations
from ewq.report.rows import MISSING, ReportedRun
from ewq.report.sections.against_size import quality_plots
from ewq.report.table import footnotes, variants_table

UNSUPPORTED = "No recommendation: that takes two variants weighed, one of them paired with fp16."
METHOD = "Recommended is only what one-sided tests at 5 %, shared among all variants, support."
_LONGEST = 160
_CAUSES = {
    DoubtKind.NOISE: "noisy clock",
    DoubtKind.THROTTLING: "throttled GPU",
    DoubtKind.BUSY: "other programs kept the processor busy",
    DoubtKind.OTHER_SESSION: "the reference's speed is from another session",
    DoubtKind.DECODE_MODE: "another way of decoding than the reference",
    DoubtKind.CHANCE: "no better than guessing",
}


def overview(shown: ReportedRun) -> Section:
    """What most readers come for: the picture, which variant to take, and the table of all."""
    parts: list[Part] = [Paragraph(text, warning=True) for text in _warnings(shown)]
    parts += [plot for plot, _ in quality_plots(shown).values()][:1]
    parts += [*_recommended(shown), variants_table(shown.rows)]
    parts += [Paragraph(note) for note in footnotes(shown.rows)]
    weighed = [record for record in shown.records if record.task == "memory"]
    if remarks := _by_text(weighed, lambda record: record.remarks):
        # Such as types of tensors other than the variants' names say.
        parts.append(Bullets(tuple(Point(text, variants) for _, variants, text in remarks)))
    changes = tuple(
        (row.variant, loss.phrase, loss.interval or MISSING, loss.detectable)
        for row in shown.rows
        for loss in losses(row)
    )
    title = "Changes from fp16 on the same items; detectable: found with 80 % power at 5 %"
    headings = ("Variant", "Change", "95 % interval", "Detectable")
    table = Table(headings, changes, frozenset({"Change"}), title, folded=True)
    parts += [table] * bool(changes)
    return Section("overview", "Which variant to take", tuple(parts))


def _warnings(shown: ReportedRun) -> list[str]:
    run, warnings = shown.run, []
    if not run.complete:
        lost = f"{len(run.lost)} of {len(run.selected)} selected benchmarks have no result"
        warnings.append(f"This run is partial: {lost}; see Verdicts.")
    if run.foreign:
        warnings.append("Stored without ewq's plugin: whether the run finished is unknown.")
    return warnings + ["Measured with uncommitted changes to the code."] * run.dirty


def _recommended(shown: ReportedRun) -> list[Part]:
    points, details = [], []
    for found in recommendations(shown.rows):
        # Where the sentence begins with the variant to take, that is what readers look for.
        name = found.variant if found.variant and found.sentence.startswith(found.variant) else ""
        text = found.sentence.removeprefix(name)
        points.append(Point(text, found.need, name, open_question=not found.decided))
        details += [Point(found.details, found.need)] * bool(found.details)
    if not points:
        return [Paragraph(UNSUPPORTED)]
    folded = Bullets((*details, Point(METHOD)), "Why, and what is undecided", folded=True)
    return [Bullets(tuple(points)), folded]


def _by_text(
    records: Sequence[Record], texts: Callable[[Record], Sequence[str]]
) -> list[tuple[str, str, str]]:
    """``(task, variants, text)``: each text of a task once, with all variants it is about."""
    found: dict[tuple[str, str], list[str]] = {}
    for record in records:
        for text in texts(record):
            found.setdefault((record.task, text), []).append(record.variant)
    return [(task, ", ".join(names), text) for (task, text), names in found.items()]


def verdicts(shown: ReportedRun) -> Section:
    """Counts of verdicts, the sentence behind each that is no pass, and gaps."""
    records, run = shown.records, shown.run
    gaps: dict[str, list[str]] = {}
    for variant, task in run.lost:
        reason = run.failed.get(f"{variant}/{task}") or "no reason stored"
        gaps.setdefault(str(reason), []).append(f"{variant} {task}")
    points = verdict_points(records) + [
        Point(f"{', '.join(names)}: {reason}", "not measured", bad=True)
        for reason, names in gaps.items()
    ]
    judged = _having(records, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.IMPROVED)
    parts: list[Part] = [Paragraph(f"{len(records)} measurements: {verdict_counts(records)}.")]
    parts += [Bullets(tuple(points))] * bool(points)
    reasons = _by_text(judged, lambda record: [str(reason) for reason in record.reasons])
    for title, heading, rows in (
        ("Reasons with their statistics", "Reason", reasons),
        ("Remarks on the measurements", "Remark", _by_text(records, lambda r: r.remarks)),
    ):
        headings = ("Task", "Variants", heading)
        parts += [Table(headings, tuple(rows), frozenset(headings), title, True)] * bool(rows)
    return Section("verdicts", "Verdicts", tuple(parts))


def verdict_counts(records: Sequence[Record]) -> str:
    """``1 fail, 2 not gated, 20 pass``."""
    counted = Counter(record.verdict for record in records)
    found = [f"{counted[each]} {each.value}" for each in PRECEDENCE if each in counted]
    return ", ".join(found).replace(Verdict.NO_BASELINE.value, "not gated")


def verdict_points(records: Sequence[Record]) -> list[Point]:
    """What failed or improved, and each cause of what is inconclusive once; no statistics."""
    points = []
    for record in _having(records, Verdict.FAIL, Verdict.IMPROVED):
        reasons = "; ".join(reason.text for reason in record.reasons) or "no reason stored"
        text = f"{record.variant}, {record.task}: {reasons}"
        points.append(Point(text, record.verdict.value, bad=record.verdict is Verdict.FAIL))
    open_ones = _by_text(_having(records, Verdict.INCONCLUSIVE), _causes)
    return points + [
        Point(f"{task}: {cause}: {variants}", Verdict.INCONCLUSIVE.value, open_question=True)
        for task, variants, cause in open_ones
    ]


def _having(records: Sequence[Record], *verdicts: Verdict) -> list[Record]:
    return [r for verdict in verdicts for r in records if r.verdict is verdict]


def _causes(record: Record) -> list[str]:
    """Why a record is inconclusive, in words that are the same for all variants."""
    doubts = (doubt_about(reason.metric, record) for reason in record.reasons)
    return [*dict.fromkeys(_CAUSES[doubt.kind] for doubt in doubts if doubt)] or [
        "too few items to decide"
    ]


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
    tables = (_pairs("Run", facts), _pairs("Environment", machine), _settings(shown.records))
    parts = tuple(table for table in tables if table.rows)
    return Section("protocol", "Environment and protocol", parts)


def _pairs(title: str, facts: Mapping[str, Any]) -> Table:
    rows = [{"Setting": key, "Value": _setting_text(key, facts[key])} for key in facts]
    return Table.of(rows, "Value", title=title)


def _settings(records: Sequence[Record]) -> Table:
    """Each value of a setting once, with the tasks and variants that have it."""
    having: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        for key, value in record.settings.items():
            having.setdefault((key, _setting_text(key, value)), []).append(record)
    rows = []
    for setting, own in sorted(having.items()):
        tasks = dict.fromkeys(record.task for record in own)
        variants = dict.fromkeys(record.variant for record in own)
        everyone = len(own) == sum(record.task in tasks for record in records)
        all_tasks = "all" if len(own) == len(records) else ", ".join(tasks)
        rows.append((*setting, all_tasks, "all" if everyone else ", ".join(variants)))
    headings = ("Setting", "Value", "Tasks", "Variants")
    return Table(headings, tuple(rows), frozenset(headings), "Settings of the tasks")


def _setting_text(key: str, value: Any) -> str:
    if key == "subjects" and isinstance(value, list):
        return f"{len(value)} subjects, {sum(int(n) for _, n in value)} questions"
    if key.endswith("_bytes") and isinstance(value, int):
        return f"{value / 1e9:.1f} GB"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
