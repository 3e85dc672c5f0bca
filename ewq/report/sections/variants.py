"""The table in the shape EWQ's readers know, and plans against uniform controls."""

from __future__ import annotations

from ewq.report.document import Paragraph, Part, Section, Table
from ewq.report.duels import duels
from ewq.report.subject import Reported
from ewq.report.table import columns_for, footnotes


def section(subject: Reported) -> Section:
    """Memory, speed, MMLU, perplexity and verdict of every variant."""
    columns = columns_for(subject.rows)
    rows = tuple(tuple(column.cell(row) for column in columns) for row in subject.rows)
    headings = tuple(column.heading for column in columns)
    parts: list[Part] = [Table(headings, rows, frozenset({"Verdict"}))]
    parts += [Paragraph(note) for note in footnotes(subject.rows)]
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
