"""The formats of reports and comparisons; HTML and Markdown are templates of the same parts.

An HTML page needs no other file and runs nothing but its own two scripts, whose digests stand in
its content security policy: should a text ever escape its escaping, the browser still refuses it.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Collection
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ewq.errors import InputError
from ewq.report.document import Page, Plot
from ewq.report.escaping import csv_text, markdown_block, markdown_text, printable

_SUFFIXES = {".html": "html", ".htm": "html", ".md": "md", ".json": "json", ".csv": "csv"}
_FIGURES = ("value", "stderr", "n", "unit", "higher_is_better")
_TIED = re.compile(r" (?=%|±|(?:[GM]B|points|tokens/s)\b)|(?<=±) ")
"""Blanks at which no line may break: before a unit, and around an error."""


def to_html(page: Page) -> str:
    """The page as one file."""
    plots = [part for section in page.sections for part in section.parts if isinstance(part, Plot)]
    scripts = [_plotly(), _asset("draw.js")] if plots else []
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
    return _filled(
        "page.html",
        printable,
        page=page,
        plots=plots,
        scripts=scripts,
        digests=[base64.b64encode(digest).decode() for digest in digests],
        style=_asset("page.css"),
    )


def to_markdown(page: Page, level: int = 1) -> str:
    """The page as GitHub-flavoured Markdown, its title a heading of ``level``."""
    return _filled("page.md", lambda text: Markup(markdown_text(text)), page=page, level=level)


def _filled(template: str, clean: Callable[[str], str], **values: Any) -> str:
    """A template with every text that it is given cleaned, then escaped if that left it plain."""

    def cleaned(value: Any) -> Any:
        return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        autoescape=True,
        finalize=cleaned,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters["tied"] = lambda text: _TIED.sub("\u00a0", text)
    environment.filters["code"] = lambda text: Markup(markdown_block(text))
    return environment.from_string(_asset(template)).render(**values)


def _asset(name: str) -> str:
    return files("ewq.report").joinpath("assets", name).read_text(encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    # HTML parsing turns CR LF into LF before the digest is taken.
    return source.replace("\r\n", "\n").replace("\r", "\n")


def to_json(page: Page) -> str:
    """The page's data for machines: one JSON document."""
    return json.dumps(page.data, indent=1, allow_nan=False) + "\n"


def to_csv(page: Page) -> str:
    """One line for each metric of each variant; what is unknown is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("variant", "task", "metric", *_FIGURES, "verdict"))
    for row in page.data["variants"]:
        for task, record in row["tasks"].items():
            for name, metric in record["metrics"].items():
                words = (csv_text(text) for text in (row["variant"], task, name))
                figures = (metric[key] for key in _FIGURES)
                writer.writerow((*words, *figures, record["verdict"]))
    return buffer.getvalue()


FORMATS: dict[str, Callable[[Page], str]] = {
    "html": to_html,
    "md": to_markdown,
    "json": to_json,
    "csv": to_csv,
}


def format_of(output: Path | None, known: Collection[str], default: str) -> str:
    """The format, of those known, that a file's name asks for; ``default`` for standard output.

    Raises:
        InputError: a file whose name ends in none of them.
    """
    if output is None or output == Path("-"):
        return default
    found = _SUFFIXES.get(output.suffix.lower())
    if found is None or found not in known:
        endings = ", ".join(f".{name}" for name in known)
        raise InputError(
            f"{output}: no format ends in {output.suffix or 'nothing'!r}; name the file {endings}, "
            "or give --format"
        )
    return found
