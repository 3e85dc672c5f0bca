"""A report as one HTML file that needs nothing else and runs nothing but its own two scripts.

A content security policy with the digests of those scripts stands in the page: should a text from
data ever escape its escaping, the browser still refuses it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import asdict
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ewq.report.document import VERDICT, Page, Plot
from ewq.report.escaping import html_text, printable, script_json

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

SIZE_LIMIT_BYTES = 6_000_000
"""What a page may weigh; plotly.js is most of it."""

_TIED = re.compile(r" (?=%|±|(?:[GM]B|points|tokens/s)\b)|(?<=±) ")


def to_html(page: Page) -> str:
    """The page as one file."""
    plots = [part for section in page.sections for part in section.parts if isinstance(part, Plot)]
    scripts = [_plotly(), _asset("draw.js")] if plots else []
    return _template().render(
        page=page,
        plots=plots,
        scripts=scripts,
        digests=_digests(scripts),
        style=_asset("page.css"),
        verdict_heading=VERDICT,
    )


def _template() -> Template:
    """The template; what it writes of a page is made printable, then escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def cleaned(value: Any) -> Any:
        plain = isinstance(value, str) and not isinstance(value, Markup)
        return printable(value) if plain else value

    environment = Environment(
        autoescape=True,
        finalize=cleaned,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"tied": _tied, "embedded": _embedded}
    environment.globals["kind"] = lambda part: type(part).__name__
    return environment.from_string(_asset("page.html"))


def _tied(text: str) -> Markup:
    """Text that wraps, but not between a number and its unit or error."""
    from markupsafe import Markup

    return Markup(_TIED.sub("\u00a0", html_text(text)))


def _embedded(plot: Plot) -> Markup:
    from markupsafe import Markup

    labels = [asdict(label) for label in plot.labels]
    return Markup(script_json({**plot.figure, "labels": labels}))


def _digests(scripts: list[str]) -> Markup:
    from markupsafe import Markup

    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    encoded = (base64.b64encode(digest).decode("ascii") for digest in digests)
    return Markup(" ".join(f"'sha256-{digest}'" for digest in encoded) or "'none'")


def _asset(name: str) -> str:
    return files("ewq.report").joinpath("assets", name).read_text(encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    # HTML parsing turns CR LF into LF before the digest is taken.
    return source.replace("\r\n", "\n").replace("\r", "\n")
