"""The formats that reports and comparisons are written in."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection
from pathlib import Path

from ewq.errors import InputError
from ewq.report.document import Page
from ewq.report.escaping import csv_text
from ewq.report.html import to_html
from ewq.report.markdown import to_markdown

_SUFFIXES = {".html": "html", ".htm": "html", ".md": "md", ".json": "json", ".csv": "csv"}
_FIGURES = ("value", "stderr", "n", "unit", "higher_is_better")
_CSV_HEADINGS = ("variant", "task", "metric", *_FIGURES, "verdict")


def to_json(page: Page) -> str:
    """The page's data for machines: one JSON document."""
    return json.dumps(page.data, indent=1, allow_nan=False) + "\n"


def to_csv(page: Page) -> str:
    """One line for each metric of each variant; what is unknown is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_CSV_HEADINGS)
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
    """The format that a file's name asks for.

    Args:
        output: the file; ``None`` or ``-`` for standard output.
        known: formats to choose from.
        default: what standard output gets.

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
