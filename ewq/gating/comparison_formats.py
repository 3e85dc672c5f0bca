"""A comparison as Markdown for a pull request, as JSON, as HTML."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from ewq.gating.change import Change
from ewq.gating.compare import Comparison, Row
from ewq.record import Verdict
from ewq.storage.runs import Run

COMMENT_LIMIT = 65_536
"""Largest comment GitHub takes; counted here in UTF-8 bytes, which are never fewer."""
_LISTED = 20
"""Sentences shown of a list that may be as long as the run has benchmarks."""
_SENTENCE_LENGTH = 600

_IMPORTANCE: tuple[Verdict | None, ...] = (
    Verdict.FAIL,
    Verdict.INCONCLUSIVE,
    Verdict.IMPROVED,
    Verdict.NO_BASELINE,
    Verdict.PASS,
    None,
)

_HEADLINES = {
    0: "no regression",
    1: "regression",
    2: "not comparable",
}


def to_markdown(comparison: Comparison, limit: int = COMMENT_LIMIT) -> str:
    """A pull-request comment of fewer than ``limit`` bytes.

    Rows are left out, least important first, until it fits; the text says how many.
    """
    rows = _ranked(comparison)
    kept = len(rows)
    text = _markdown(comparison, rows, kept)
    while kept and len(text.encode()) >= limit:
        excess = (len(text.encode()) - limit) // 200
        kept = max(0, kept - max(1, excess))
        text = _markdown(comparison, rows, kept)
    return text if len(text.encode()) < limit else _cut(text, limit)


def _cut(text: str, limit: int) -> str:
    """The lists alone may be too long: whole lines from the top, and a line that says so."""
    note = "\n\nThe rest does not fit a comment; `--format json` or `html` has it all.\n"
    room = limit - len(note.encode()) - 1
    return text.encode()[:room].decode(errors="ignore").rpartition("\n")[0] + note


def to_json(comparison: Comparison) -> str:
    """One JSON document with everything, rows in the run's own order."""
    document = {
        "schema": 1,
        "verdict": comparison.verdict.value,
        "exit_code": comparison.exit_code,
        "before": _run_json(comparison.before),
        "after": _run_json(comparison.after),
        "refusals": list(comparison.refusals),
        "losses": list(comparison.losses),
        "uncovered": list(comparison.uncovered),
        "differences": list(comparison.differences),
        "rows": [_row_json(row) for row in comparison.rows],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def to_html(comparison: Comparison) -> str:
    """A page that stands alone: no script, nothing loaded from elsewhere."""
    head = "".join(f"<th>{escape(title)}</th>" for title in _COLUMNS)
    body = "\n".join(
        f'<tr class="{_word(row.change)}" title="{escape(row.change.sentence)}">'
        + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(row))
        + "</tr>"
        for row in _ranked(comparison)
    )
    lists = "".join(
        f"<h2>{escape(title)}</h2><ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"
        for title, items in _sections(comparison)
        if items
    )
    return _PAGE.format(
        title=escape(_title(comparison)),
        runs=escape(_runs(comparison)),
        lists=lists,
        head=head,
        body=body,
    )


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "md": to_markdown,
    "json": to_json,
    "html": to_html,
}

_COLUMNS = ("verdict", "variant", "task", "metric", "before", "after", "change", "error")

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
  color: #1c1c1c; background: #fff }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }}
th, td {{ text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #ddd }}
td:nth-child(n+5), th:nth-child(n+5) {{ text-align: right }}
.fail td:first-child {{ color: #a40000; font-weight: 600 }}
.improved td:first-child {{ color: #1a6b1a }}
.inconclusive td:first-child {{ color: #8a5a00 }}
@media (prefers-color-scheme: dark) {{ body {{ color: #e6e6e6; background: #161616 }}
  th, td {{ border-color: #333 }} .fail td:first-child {{ color: #ff8a80 }}
  .improved td:first-child {{ color: #8fd18f }} .inconclusive td:first-child {{ color: #ffca6b }} }}
</style></head><body>
<h1>{title}</h1><p>{runs}</p>
{lists}
<h2>All metrics</h2>
<table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table></body></html>
"""


def _ranked(comparison: Comparison) -> list[Row]:
    return sorted(comparison.rows, key=lambda row: _IMPORTANCE.index(row.change.verdict))


def _title(comparison: Comparison) -> str:
    return f"ewq: {_HEADLINES[comparison.exit_code]} ({comparison.verdict.value})"


def _runs(comparison: Comparison) -> str:
    before, after = comparison.before, comparison.after
    return f"baseline {before.name} -> {after.name}"


def _sections(comparison: Comparison) -> tuple[tuple[str, Sequence[str]], ...]:
    sentences = [
        f"{row.variant}/{row.task}: {row.change.sentence}"
        for row in _ranked(comparison)
        if row.change.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.IMPROVED)
    ]
    return (
        ("Lost", comparison.losses),
        ("Not comparable", comparison.refusals),
        ("Changes", sentences),
        ("Measured by one run only", comparison.uncovered),
        ("Versions that differ", comparison.differences),
    )


def _markdown(comparison: Comparison, rows: Sequence[Row], kept: int) -> str:
    lines = [f"### {_title(comparison)}", "", _markdown_text(_runs(comparison)), ""]
    for title, items in _sections(comparison):
        lines += _bullets(title, items)
    lines += _table(rows[:kept])
    if kept < len(rows):
        lines += [
            "",
            f"{len(rows) - kept} rows of least importance left out to fit a comment; "
            "`--format json` or `html` has them all.",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _bullets(title: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    shown = [f"- {_markdown_text(item[:_SENTENCE_LENGTH])}" for item in items[:_LISTED]]
    more = [f"- and {len(items) - _LISTED} more"] if len(items) > _LISTED else []
    return [f"**{title}**", "", *shown, *more, ""]


def _table(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    head = [f"| {' | '.join(_COLUMNS)} |", "| --- | --- | --- | --- | ---: | ---: | ---: | ---: |"]
    return head + [f"| {' | '.join(map(_markdown_text, _cells(row)))} |" for row in rows]


def _markdown_text(text: str) -> str:
    """Plain text inside Markdown: no markup of its own, one line, no mention of anybody."""
    for character, shown in _MARKUP.items():
        text = text.replace(character, shown)
    return text


_MARKUP = {
    "\\": "\\\\",
    "|": "\\|",
    "\n": " ",
    "\r": " ",
    "<": "&lt;",
    "*": "\\*",
    "`": "\\`",
    "@": "@\u200b",
    "[": "\\[",
    "_": "\\_",
}


def _cells(row: Row) -> tuple[str, ...]:
    change = row.change
    return (
        _word(change),
        row.variant,
        row.task,
        change.metric,
        _number(change.before),
        f"{_number(change.after)} {change.unit}".strip(),
        _difference(change),
        "" if change.stderr is None else f"± {change.stderr:.2g}",
    )


def _word(change: Change) -> str:
    return change.verdict.value if change.verdict else "shown"


def _number(value: float | None) -> str:
    return "missing" if value is None else f"{value:.6g}"


def _difference(change: Change) -> str:
    if change.delta is None:
        return ""
    share = "" if change.relative is None else f" ({change.relative:+.2%})"
    return f"{change.delta:+.3g}{share}"


def _run_json(run: Run) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "commit": run.commit,
        "dirty": run.dirty,
        "datetime": run.datetime.isoformat(),
        "complete": run.complete,
    }


def _row_json(row: Row) -> dict[str, Any]:
    change = row.change
    return {
        "variant": row.variant,
        "task": row.task,
        "metric": change.metric,
        "unit": change.unit,
        "before": change.before,
        "after": change.after,
        "delta": change.delta,
        "relative": change.relative,
        "stderr": change.stderr,
        "p_value": change.p_value,
        "verdict": change.verdict.value if change.verdict else None,
        "sentence": change.sentence,
    }
