"""The table in the shape EWQ's readers know, and plans against uniform controls."""

from __future__ import annotations

from ewq.report.document import Paragraph, Part, Section, Table
from ewq.report.duels import duels
from ewq.report.evidence import LOSSES, Loss
from ewq.report.rows import ABSENT
from ewq.report.subject import Reported
from ewq.report.table import columns_for, footnotes


def section(subject: Reported) -> Section:
    """Memory, speed, MMLU, perplexity and verdict of every variant."""
    columns = columns_for(subject.rows)
    rows = tuple(tuple(column.cell(row) for column in columns) for row in subject.rows)
    headings = tuple(column.heading for column in columns)
    parts: list[Part] = [Table(headings, rows, frozenset({"Verdict"}))]
    parts += [Paragraph(note) for note in footnotes(subject.rows)]
    parts += _paired(subject)
    fought = duels(subject.rows)
    if fought:
        parts.append(
            Table(
                ("Plan", "Control", "Size", "Perplexity %", "Outcome"),
                tuple(
                    (d.plan, d.control, f"{d.size_share - 1:+.0%}", d.perplexity_percent, d.outcome)
                    for d in fought
                ),
                frozenset({"Control", "Outcome"}),
                title="Plans against uniform controls of the same engine, on the same texts: by "
                "how much the plan's size and perplexity differ",
            )
        )
    return Section("variants", "All variants", tuple(parts))


def _paired(subject: Reported) -> list[Part]:
    """Each change from FP16 with its interval and what this run could have detected."""
    losses = [(row.variant, loss) for row in subject.rows for ask in LOSSES if (loss := ask(row))]
    if not losses:
        return []
    rows = tuple(
        (variant, loss.words, _interval(loss), loss.detectable_words()) for variant, loss in losses
    )
    title = "Changes from FP16, paired on the same items; detectable: found with 80 % power at 5 %"
    headings = ("Variant", "Change", "95 % interval", "Detectable")
    return [Table(headings, rows, frozenset({"Change"}), title=title)]


def _interval(loss: Loss) -> str:
    if loss.interval is None:
        return ABSENT
    low, high = loss.interval
    return f"{low:+.2f} to {high:+.2f} {loss.unit}"
