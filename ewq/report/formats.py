"""The formats a report is written in."""

from __future__ import annotations

import json
from collections.abc import Callable

from ewq.report.document import Page
from ewq.report.html import to_html
from ewq.report.markdown import to_markdown


def to_json(page: Page) -> str:
    """The report for machines: one JSON document."""
    return json.dumps(page.data, indent=1, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Page], str]] = {
    "html": to_html,
    "md": to_markdown,
    "json": to_json,
}
