"""The formats of reports and comparisons; HTML and Markdown are templates of the same parts.

An HTML page needs no other file and runs nothing but the scripts whose digests its policy names.
"""

import base64
import csv
import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ewq.errors import InputError
from ewq.report.document import Page, Plot, csv_text, markdown_block, markdown_text, printable
from ewq.report.rows import LM_EVAL, Estimate
from ewq.tasks.table import Kind, figure_of

_FIGURES = ("value", "stderr", "n", "unit", "higher_is_better")


def to_html(page: Page) -> str:
    """The page as one file."""
    plots = [part for section in page.sections for part in section.parts if isinstance(part, Plot)]
    scripts: list[str] = []
    if plots:
        # HTML parsing turns CR LF into LF before the digest is taken.
        plotly = get_plotlyjs().replace("\r\n", "\n").replace("\r", "\n")
        scripts = [plotly, _asset("draw.js")]
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
    given = {"page": page, "plots": plots, "scripts": scripts, "style": _asset("page.css")}
    encoded = [base64.b64encode(digest).decode() for digest in digests]
    return _filled("page.html", printable, **given, digests=encoded)


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
    environment.filters["code"] = lambda text: Markup(markdown_block(text))
    return environment.from_string(_asset(template)).render(**values)


def _asset(name: str) -> str:
    return files("ewq.report").joinpath("assets", name).read_text(encoding="utf-8")


def to_json(page: Page) -> str:
    """The page's data for machines: one JSON document."""
    return _json(page.data)


def _json(document: object) -> str:
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def to_csv(page: Page) -> str:
    """One line for each metric of each variant; what is unknown is empty."""
    rows = (
        (*names, *(metric[key] for key in _FIGURES), record["verdict"])
        for names, metric, record in _metrics(page)
    )
    return csv_of(("variant", "task", "metric", *_FIGURES, "verdict"), rows)


def csv_of(headings: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A table for spreadsheets, without formulas in its texts."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(headings)
    for row in rows:
        writer.writerow(csv_text(cell) if isinstance(cell, str) else cell for cell in row)
    return buffer.getvalue()


def _metrics(page: Page) -> Iterator[tuple[tuple[str, str, str], dict[str, Any], dict[str, Any]]]:
    """Variant, task and name of each metric of a report; the metric; its record."""
    for row in page.data["variants"]:
        for task, record in row["tasks"].items():
            for name, metric in record["metrics"].items():
                yield (row["variant"], task, name), metric, record


def _gated(page: Page) -> Iterator[tuple[tuple[str, str, str], dict[str, Any], float]]:
    """What a baseline gates, with half of its 95 % interval: the rest would drown it in charts."""
    for (variant, task, name), metric, _ in _metrics(page):
        if (figure := figure_of(task, name)) and figure.tolerance:
            half = Estimate(metric["value"], metric["stderr"], metric["freedom"]).half_width
            yield (variant, task, name), metric, half


def to_github(page: Page, *, bigger: bool) -> str:
    """What github-action-benchmark reads; a file of its holds one direction only."""
    entries = []
    for names, metric, half in _gated(page):
        if metric["higher_is_better"] is bigger:
            told = {"name": " ".join(names), "unit": metric["unit"], "value": metric["value"]}
            error = {"range": f"± {half:.4g}"} if half else {}
            entries.append({**told, "extra": f"n {metric['n']}", **error})
    return _json(entries)


def to_bencher(page: Page) -> str:
    """The Bencher Metric Format: benchmark -> measure -> value with its 95 % bounds."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (variant, task, name), metric, half in _gated(page):
        value = metric["value"]
        bounds = {"lower_value": value - half, "upper_value": value + half} if half else {}
        found.setdefault(f"{variant} {task}", {})[name] = {"value": value, **bounds}
    return _json(found)


def to_model_index(page: Page) -> str:
    """The ``model-index`` block of a model card on the hub: an entry for each variant."""
    found: dict[str, list[dict[str, Any]]] = {}
    for (variant, task, name), metric, _ in _gated(page):
        if (figure := figure_of(task, name)) and figure.kind in (Kind.QUALITY, Kind.CHOICE):
            data = dict.fromkeys(("name", "type"), task.removeprefix(LM_EVAL))
            facts = {"n": metric["n"], "stderr": metric["stderr"]}
            value = {"type": name, "value": metric["value"], "args": facts}
            result = {"task": {"type": "text-generation"}, "dataset": data, "metrics": [value]}
            found.setdefault(f"{page.data['model']} {variant}", []).append(result)
    index = [{"name": name, "results": results} for name, results in found.items()]
    return str(yaml.safe_dump({"model-index": index}, sort_keys=False, allow_unicode=True))


FORMATS: dict[str, Callable[[Page], str]] = {
    "html": to_html,
    "md": to_markdown,
    "json": to_json,
    "csv": to_csv,
}
EXPORTS: dict[str, Callable[[Page], str]] = {
    "github-smaller": partial(to_github, bigger=False),
    "github-bigger": partial(to_github, bigger=True),
    "bencher": to_bencher,
    "model-index": to_model_index,
}
"""What others read of a report: customSmallerIsBetter, customBiggerIsBetter, BMF, model cards."""


def format_of(output: Path | None, known: Collection[str], default: str) -> str:
    """What a file's name asks for, or an InputError; ``default`` for standard output."""
    if output is None or output == Path("-"):
        return default
    ending = output.suffix.lower().removeprefix(".")
    found = "html" if ending == "htm" else ending
    if found not in known:
        endings = ", ".join(f".{name}" for name in known)
        raise InputError(
            f"{output}: no format ends in {output.suffix or 'nothing'!r}; name the file {endings}, "
            "or give --format"
        )
    return found
