"""The first screen: the picture, which variant to take, and the table of all variants."""

from __future__ import annotations

from ewq.report.document import VERDICT, Bullets, Paragraph, Part, Point, Section, Table
from ewq.report.estimate import MISSING
from ewq.report.evidence import Loss, losses
from ewq.report.recommendations import Recommendation, recommendations
from ewq.report.rows import ReportedRun, group_by_text
from ewq.report.sections.against_size import main_plot
from ewq.report.table import columns_for, footnotes

UNSUPPORTED = (
    "No recommendation: that takes at least two variants with their weights measured, and "
    "perplexity or MMLU paired with fp16."
)
METHOD = (
    "A variant is recommended only where one-sided tests at 5 %, shared among all variants, "
    "support it. Changes from fp16 are paired on the same items."
)


def overview(shown: ReportedRun) -> Section:
    """What most readers come for; statistics are folded behind it."""
    parts: list[Part] = [Paragraph(text, warning=True) for text in _warnings(shown)]
    plot = main_plot(shown)
    parts += [plot] if plot else []
    parts += _recommended(recommendations(shown.rows))
    parts.append(_variants(shown))
    parts += [Paragraph(note) for note in footnotes(shown.rows)]
    parts += _stored_otherwise(shown)
    parts += _changes(shown)
    return Section("overview", "Which variant to take", tuple(parts))


def _warnings(shown: ReportedRun) -> list[str]:
    """What a reader must know before believing anything below."""
    run, warnings = shown.run, []
    if not run.complete:
        counts = f": {len(run.lost)} of {len(run.selected)} selected benchmarks have no result"
        listed = "; see Verdicts for what is missing"
        warnings.append(f"This run is partial{counts * bool(run.lost)}{listed}.")
    if run.foreign:
        warnings.append("Stored without ewq's plugin: whether the run finished is unknown.")
    if run.dirty:
        warnings.append("Measured with uncommitted changes to the code.")
    return warnings


def _recommended(found: list[Recommendation]) -> list[Part]:
    if not found:
        return [Paragraph(UNSUPPORTED)]
    details = (Point(each.details, each.need) for each in found if each.details)
    folded = Bullets((*details, Point(METHOD)), "Why, and what is undecided", folded=True)
    return [Bullets(tuple(_point(each) for each in found)), folded]


def _point(found: Recommendation) -> Point:
    """Where the sentence begins with the variant to take, that is what readers look for."""
    name = found.variant or ""
    named = bool(name) and found.sentence.startswith(name)
    return Point(
        found.sentence[len(name) :] if named else found.sentence,
        found.need,
        name if named else "",
        open_question=not found.decided,
    )


def _variants(shown: ReportedRun) -> Table:
    columns = columns_for(shown.rows)
    rows = tuple(tuple(column.cell(row) for column in columns) for row in shown.rows)
    headings = tuple(column.heading for column in columns)
    verdicts = tuple(row.verdict for row in shown.rows)
    return Table(headings, rows, frozenset({VERDICT}), verdicts=verdicts)


def _stored_otherwise(shown: ReportedRun) -> list[Part]:
    """What is remarked on variants' weights, such as types other than their names say."""
    weighed = [record for record in shown.records if record.task == "memory"]
    found = group_by_text(weighed, lambda record: record.remarks)
    return [Bullets(tuple(Point(text, variants) for _, text, variants in found))] if found else []


def _changes(shown: ReportedRun) -> list[Part]:
    """Each change from FP16 with its interval and what this run could have detected."""
    found = [(row.variant, loss) for row in shown.rows for loss in losses(row)]
    if not found:
        return []
    rows = tuple(
        (variant, loss.phrase, _interval(loss), loss.detectable) for variant, loss in found
    )
    title = "Changes from fp16 on the same items; detectable: found with 80 % power at 5 %"
    headings = ("Variant", "Change", "95 % interval", "Detectable")
    return [Table(headings, rows, frozenset({"Change"}), title, folded=True)]


def _interval(loss: Loss) -> str:
    if loss.interval is None:
        return MISSING
    low, high = loss.interval
    return f"{low:+.2f} to {high:+.2f} {loss.unit}"
