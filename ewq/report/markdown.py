"""A report as Markdown: words and tables; each plot as the table that equals it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ewq.report.document import Bullets, Excerpts, Page, Paragraph, Part, Plot, Section, Table
from ewq.report.escaping import markdown_block, markdown_text


def to_markdown(page: Page, level: int = 1) -> str:
    """The page as GitHub-flavoured Markdown, its title a heading of ``level``."""
    head = f"{'#' * level} {markdown_text(page.title)}\n\n{markdown_text(page.subtitle)}"
    return "\n\n".join([head, *(_section(section, level + 1) for section in page.sections)]) + "\n"


def _section(section: Section, level: int) -> str:
    parts = [_WRITERS[type(part)](part) for part in section.parts]
    heading = [f"{'#' * level} {markdown_text(section.title)}"] * bool(section.title)
    return "\n\n".join([*heading, *parts])


def _paragraph(part: Paragraph) -> str:
    text = markdown_text(part.text)
    return f"> **Note:** {text}" if part.warning else text


def _titled(body: str, title: str, folded: bool) -> str:
    """A table or list under its title, or behind it."""
    text = markdown_text(title)
    if folded:
        return f"<details><summary>{text}</summary>\n\n{body}\n\n</details>"
    return f"*{text}*\n\n{body}" if title else body


def _bullets(part: Bullets) -> str:
    lines = []
    for point in part.points:
        doubt = "(undecided) " if point.open_question else ""
        lead = f"**{markdown_text(point.lead)}:** " if point.lead else ""
        name = f"**{markdown_text(point.name)}**" if point.name else ""
        # The rest of a sentence that begins with a name brings its own gap.
        gap = " " * (bool(name) and point.text.startswith(" "))
        lines.append(f"- {doubt}{lead}{name}{gap}{markdown_text(point.text)}")
    return _titled("\n".join(lines), part.title, part.folded)


def _table(part: Table) -> str:
    rules = [
        ":--" if place == 0 or heading in part.words else "--:"
        for place, heading in enumerate(part.headings)
    ]
    rows = [part.headings, *part.rows]
    head, *body = [f"| {' | '.join(markdown_text(cell) for cell in row)} |" for row in rows]
    table = "\n".join([head, f"| {' | '.join(rules)} |", *body])
    return _titled(table, part.title, part.folded)


def _plot(part: Plot) -> str:
    """The table that says the same, behind the plot's title."""
    table = f"{markdown_text(part.caption)}\n\n{_table(part.table)}"
    return _titled(table, part.title, folded=True)


def _excerpts(part: Excerpts) -> str:
    blocks = [f"### {markdown_text(part.name)}", markdown_block(part.prompt)]
    for excerpt in part.excerpts:
        note = f" ({excerpt.note})" if excerpt.note else ""
        blocks.append(markdown_text(excerpt.source + note) + ":")
        blocks.append(markdown_block(excerpt.same + excerpt.different))
    return "\n\n".join(blocks)


_WRITERS: dict[type[Part], Callable[[Any], str]] = {
    Paragraph: _paragraph,
    Bullets: _bullets,
    Table: _table,
    Plot: _plot,
    Excerpts: _excerpts,
}
