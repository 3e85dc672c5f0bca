"""A report as one HTML file that needs nothing else and runs nothing but its own two scripts.

A content security policy with the digests of those scripts stands in the page:
should a text from data ever escape its escaping, the browser still refuses it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from ewq.report.document import (
    VERDICT,
    Bullets,
    Excerpt,
    Excerpts,
    Page,
    Paragraph,
    Part,
    Plot,
    Point,
    Section,
    Table,
)
from ewq.report.escaping import html_text, script_json

SIZE_LIMIT_BYTES = 6_000_000
"""What a page may weigh; plotly.js is most of it."""

_TIED = re.compile(r" (?=%|±|(?:[GM]B|points|tokens/s)\b)|(?<=±) ")
_LONG_CELL = 32


def to_html(page: Page) -> str:
    """The page as one file."""
    plots = [part for section in page.sections for part in section.parts if isinstance(part, Plot)]
    scripts = [_plotly(), _asset("draw.js")] if plots else []
    return _PAGE.format(
        policy=_policy(scripts),
        title=html_text(page.title),
        subtitle=html_text(page.subtitle),
        style=_asset("page.css"),
        links="".join(
            f'<a href="#{html_text(section.name)}">{html_text(section.title)}</a>'
            for section in page.sections
            if section.title
        ),
        body="\n".join(_section(section) for section in page.sections),
        data="\n".join(_plot_data(plot) for plot in plots),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style></head><body>
<header><h1>{title}</h1><p class="quiet">{subtitle}</p><nav aria-label="Sections">{links}</nav>
<noscript><p class="warning">Plots need JavaScript; the tables under them say the same.</p>
</noscript>
</header>
<main>
{body}
</main>
<footer><p>Made by ewq. Nothing in this page is loaded from elsewhere.</p></footer>
{data}
{scripts}
</body></html>
"""


def _policy(scripts: list[str]) -> str:
    digests = " ".join(f"'sha256-{_digest(script)}'" for script in scripts) or "'none'"
    return (
        f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _asset(name: str) -> str:
    return files("ewq.report").joinpath("assets", name).read_text(encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    # HTML parsing turns CR LF into LF before the digest is taken.
    return source.replace("\r\n", "\n").replace("\r", "\n")


def _section(section: Section) -> str:
    body = "\n".join(_WRITERS[type(part)](part) for part in section.parts)
    heading = f"<h2>{html_text(section.title)}</h2>" if section.title else ""
    return f'<section id="{html_text(section.name)}">{heading}\n{body}\n</section>'


def _paragraph(part: Paragraph) -> str:
    kind = ' class="warning" role="note"' if part.warning else ""
    return f"<p{kind}>{_prose(part.text)}</p>"


def _bullets(part: Bullets) -> str:
    points = "".join(_point(point) for point in part.points)
    return _titled(f'<ul class="points">{points}</ul>', part.title, part.folded)


def _titled(body: str, title: str, folded: bool) -> str:
    """A table or list under its title, or behind it."""
    if folded:
        return f'<details class="folded"><summary>{html_text(title)}</summary>{body}</details>'
    return f'<p class="quiet">{html_text(title)}</p>{body}' if title else body


def _point(point: Point) -> str:
    lead = f"<b>{html_text(point.lead)}:</b>" if point.lead else ""
    tag = '<span class="tag">undecided</span>' if point.open_question else ""
    kind = _class("open" * point.open_question or "bad" * point.bad)
    name = f"<strong>{html_text(point.name)}</strong>" if point.name else ""
    return f"<li{kind}>{tag}{lead}{name}{_prose(point.text)}</li>"


def _prose(text: str) -> str:
    """Text that wraps, but not between a number and its unit or error."""
    return _TIED.sub("\u00a0", html_text(text))


def _table(part: Table) -> str:
    words = [place == 0 or heading in part.words for place, heading in enumerate(part.headings)]
    head = "".join(
        f'<th scope="col"{_class("word" * word)}>{html_text(heading)}</th>'
        for heading, word in zip(part.headings, words, strict=True)
    )
    body = "\n".join(_row(part, place, words) for place in range(len(part.rows)))
    table = (
        f'<div class="scroll" tabindex="0"><table{_class("text" * all(words))}>'
        f"<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )
    return _titled(table, part.title, part.folded)


def _row(part: Table, place: int, words: list[bool]) -> str:
    first, *cells = part.rows[place]
    verdict = part.verdicts[place].value if part.verdicts else ""
    rest = "".join(
        f"<td{_class('word' * word, 'long' * (len(cell) > _LONG_CELL), verdict * judged)}>"
        f"{html_text(cell)}</td>"
        for cell, word, judged in zip(
            cells, words[1:], (heading == VERDICT for heading in part.headings[1:]), strict=True
        )
    )
    return f'<tr><th scope="row">{html_text(first)}</th>{rest}</tr>'


def _class(*names: str) -> str:
    given = " ".join(name for name in names if name)
    return f' class="{given}"' if given else ""


def _plot(part: Plot) -> str:
    name, title = html_text(part.name), html_text(part.title)
    return (
        f'<figure><h3>{title}</h3><div class="plot" id="{name}" data-height="{part.height_px}" '
        f'style="min-height:{part.height_px}px" role="img" '
        f'aria-label="{title}; the table below says the same"></div>'
        f"<figcaption>{_prose(part.caption)}</figcaption>"
        f"<details><summary>{title} as a table</summary>{_table(part.table)}</details></figure>"
    )


def _plot_data(part: Plot) -> str:
    figure: dict[str, Any] = {**part.figure, "labels": [asdict(label) for label in part.labels]}
    name = html_text(part.name)
    return f'<script type="application/json" id="{name}-data">{script_json(figure)}</script>'


def _excerpts(part: Excerpts) -> str:
    boxes = "".join(_excerpt(excerpt) for excerpt in part.excerpts)
    return (
        f'<details class="samples"><summary>{html_text(part.name)}</summary>'
        f'<pre class="prompt">{html_text(part.prompt)}</pre>'
        f'<div class="grid">{boxes}</div></details>'
    )


def _excerpt(part: Excerpt) -> str:
    note = f' <span class="quiet">{html_text(part.note)}</span>' if part.note else ""
    different = f"<mark>{html_text(part.different)}</mark>" if part.different else ""
    text = f"<pre>{html_text(part.same)}{different}</pre>"
    return f"<section><h4>{html_text(part.source)}{note}</h4>{text}</section>"


_WRITERS: dict[type[Part], Callable[[Any], str]] = {
    Paragraph: _paragraph,
    Bullets: _bullets,
    Table: _table,
    Plot: _plot,
    Excerpts: _excerpts,
}
