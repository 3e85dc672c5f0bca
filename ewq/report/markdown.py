"""A report as Markdown: words and tables; each plot as the table that equals it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ewq.report.document import Bullets, Excerpts, Page, Paragraph, Part, Plot, Section, Table
from ewq.report.escaping import markdown_block, markdown_text


def to_markdown(page: Page) -> str:
    """The page as GitHub-flavoured Markdown."""
    head = f"# {markdown_text(page.title)}\n\n{markdown_text(page.subtitle)}"
    return "\n\n".join([head, *(_section(section) for section in page.sections)]) + "\n"


def _section(section: Section) -> str:
    parts = [_WRITERS[type(part)](part) for part in section.parts]
    return "\n\n".join([f"## {markdown_text(section.title)}", *parts])


def _paragraph(part: Paragraph) -> str:
    text = markdown_text(part.text)
    return f"> **Note:** {text}" if part.warning else text


def _bullets(part: Bullets) -> str:
    lines = []
    for point in part.points:
        doubt = "(not decided) " if point.open_question else ""
        lead = f"**{markdown_text(point.lead)}:** " if point.lead else ""
        name = f"**{markdown_text(point.name)}**" if point.name else ""
        # The rest of a sentence that begins with a name brings its own gap.
        gap = " " * (bool(name) and point.text.startswith(" "))
        lines.append(f"- {doubt}{lead}{name}{gap}{markdown_text(point.text)}")
    return "\n".join(lines)


def _table(part: Table) -> str:
    rules = [
        ":--" if place == 0 or heading in part.words else "--:"
        for place, heading in enumerate(part.headings)
    ]
    rows = [part.headings, *part.rows]
    head, *body = [f"| {' | '.join(markdown_text(cell) for cell in row)} |" for row in rows]
    title = [f"*{markdown_text(part.title)}*", ""] if part.title else []
    return "\n".join([*title, head, f"| {' | '.join(rules)} |", *body])


def _plot(part: Plot) -> str:
    title, caption = markdown_text(part.title), markdown_text(part.caption)
    return f"### {title}\n\n{caption}\n\n{_table(part.table)}"


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
