"""The first screen: the picture, which variant to take, and the table of all variants."""

from __future__ import annotations

from ewq.report.document import Bullets, Paragraph, Part, Point, Section, Table
from ewq.report.estimate import MISSING
from ewq.report.evidence import losses
from ewq.report.recommendations import Recommendation, recommendations
from ewq.report.rows import ReportedRun, group_by_text
from ewq.report.sections.against_size import main_plot
from ewq.report.table import footnotes, variants_table

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
    if (plot := main_plot(shown)) is not None:
        parts.append(plot)
    parts += _recommended(recommendations(shown.rows))
    parts.append(variants_table(shown.rows))
    parts += [Paragraph(note) for note in footnotes(shown.rows)]
    weighed = [record for record in shown.records if record.task == "memory"]
    if remarks := group_by_text(weighed, lambda record: record.remarks):
        # Such as types of tensors other than the variants' names say.
        parts.append(Bullets(tuple(Point(text, variants) for _, variants, text in remarks)))
    changes = _changes(shown)
    parts += [changes] if changes.rows else []
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
    name = found.variant if found.variant and found.sentence.startswith(found.variant) else ""
    text = found.sentence.removeprefix(name)
    return Point(text, found.need, name, open_question=not found.decided)


def _changes(shown: ReportedRun) -> Table:
    """Each change from FP16 with its interval and what this run could have detected."""
    rows = tuple(
        (
            row.variant,
            loss.phrase,
            f"{' to '.join(f'{bound:+.2f}' for bound in loss.interval)} {loss.unit}"
            if loss.interval
            else MISSING,
            loss.detectable,
        )
        for row in shown.rows
        for loss in losses(row)
    )
    title = "Changes from fp16 on the same items; detectable: found with 80 % power at 5 %"
    headings = ("Variant", "Change", "95 % interval", "Detectable")
    return Table(headings, rows, frozenset({"Change"}), title, folded=True)
