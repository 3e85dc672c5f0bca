"""Two stored runs against each other as a page; as Markdown, a comment under a pull request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ewq.gating.compare import Comparison, Row
from ewq.record import Verdict
from ewq.report.document import VERDICT, Bullets, Page, Paragraph, Part, Point, Section, Table
from ewq.report.estimate import MISSING
from ewq.report.formats import to_html, to_json, to_markdown
from ewq.report.rows import run_data
from ewq.tasks.table import TASKS, Kind

COMMENT_LIMIT = 65_536
"""Largest comment GitHub takes; counted here in UTF-8 bytes, which are never fewer."""
_LISTED = 20
"""Lines shown of a list in a comment, which may be as long as the run has benchmarks."""
_SENTENCE_LENGTH = 600

_NOTABLE = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.IMPROVED)
"""Verdicts on changes that a reader must see, the gravest first."""


def to_comment(comparison: Comparison, limit: int = COMMENT_LIMIT) -> str:
    """A comment of fewer than ``limit`` bytes: rows are left out, least important first."""
    kept = len(comparison.rows)
    text = to_markdown(comparison_page(comparison, kept), level=3)
    while kept and len(text.encode()) >= limit:
        kept = 3 * kept // 4
        text = to_markdown(comparison_page(comparison, kept), level=3)
    return text if len(text.encode()) < limit else _cut(text, limit)


def _cut(text: str, limit: int) -> str:
    """The lists alone may be too long: whole lines from the top, and a line that says so."""
    note = "\n\nThe rest does not fit a comment; `--format json` or `html` has it all.\n"
    room = limit - len(note.encode()) - 1
    return text.encode()[:room].decode(errors="ignore").rpartition("\n")[0] + note


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "md": to_comment,
    "json": lambda comparison: to_json(comparison_page(comparison)),
    "html": lambda comparison: to_html(comparison_page(comparison)),
}


def comparison_page(comparison: Comparison, kept: int | None = None) -> Page:
    """The verdict, what changed and its possible causes, and the rest behind titles.

    Args:
        comparison: the two runs.
        kept: rows to show, the most important ones, of a page that must be short; a page that
            need not be has the statistics of every row besides.
    """
    ranked = sorted(comparison.rows, key=_importance)
    shown = ranked if kept is None else ranked[:kept]
    notable = [row for row in shown if _is_notable(row)]
    rest = [row for row in shown if not _is_notable(row)]
    parts = [
        *_bullets(comparison, short=kept is not None),
        *([_changes(comparison, notable)] if notable else []),
        *_rest(rest, ranked),
        *([_statistics(ranked)] if kept is None and ranked else []),
        *([Paragraph(_left_out(len(ranked) - len(shown)))] if len(shown) < len(ranked) else []),
    ]
    before, after = comparison.before, comparison.after
    runs = f"{before.name} → {after.name}"
    section = Section("comparison", "", tuple(parts))
    return Page(f"ewq: {headline(comparison)}", runs, (section,), _data(comparison))


def headline(comparison: Comparison) -> str:
    """The verdict in a few words."""
    if comparison.exit_code == 2:
        return "not comparable"
    verdicts = [row.change.verdict for row in comparison.rows if _is_notable(row)]
    failed, open_ones, improved = (verdicts.count(verdict) for verdict in _NOTABLE)
    if comparison.exit_code == 1:
        lost = len(comparison.losses)
        counts = _count(failed, "metric") + " worse", _count(lost, "benchmark") + " lost"
        words = [text for number, text in zip((failed, lost), counts, strict=True) if number]
        return f"regression: {', '.join(words)}"
    words = [f"{_count(improved, 'metric')} better"] if improved else []
    words += [f"{_count(open_ones, 'metric')} inconclusive"] if open_ones else []
    calm = "no change" if _same_quality(comparison) and not improved else "no regression"
    return f"{calm}: {', '.join(words)}" if words else calm


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _same_quality(comparison: Comparison) -> bool:
    """Whether every answer and every text's score is what it was; clocks never are."""
    old, new = comparison.before.records, comparison.after.records
    shared = [key for key in new if key in old and _measures_quality(key[1])]
    return all(
        old[key].items == new[key].items and old[key].metrics == new[key].metrics for key in shared
    )


def _measures_quality(task: str) -> bool:
    figures = TASKS[task].figures if task in TASKS else ()
    return any(figure.kind in (Kind.QUALITY, Kind.CHOICE) for figure in figures)


def _is_notable(row: Row) -> bool:
    """Whether it changed for certain, or perhaps by more than is tolerated."""
    verdict = row.change.verdict
    doubtful = verdict is Verdict.INCONCLUSIVE and not row.change.worse
    return verdict in _NOTABLE and not doubtful


def _importance(row: Row) -> int:
    verdict = row.change.verdict
    if verdict and _is_notable(row):
        return _NOTABLE.index(verdict)
    return len(_NOTABLE) + (verdict is None)


def _bullets(comparison: Comparison, *, short: bool) -> list[Bullets]:
    """What was lost or cannot be compared; behind titles, versions and what one run lacks."""
    urgent = [
        *(Point(text, "lost", bad=True) for text in _listed(comparison.losses, short)),
        *(Point(text, "not comparable") for text in _listed(comparison.refusals, short)),
    ]
    folded = (
        ("Versions that differ", comparison.differences),
        ("Measured by one run only", comparison.uncovered),
    )
    return [
        *([Bullets(tuple(urgent))] if urgent else []),
        *(
            Bullets(tuple(map(Point, _listed(texts, short))), title, folded=True)
            for title, texts in folded
            if texts
        ),
    ]


def _listed(texts: Sequence[str], short: bool) -> list[str]:
    if not short:
        return list(texts)
    more = len(texts) - _LISTED
    return [text[:_SENTENCE_LENGTH] for text in texts[:_LISTED]] + [f"and {more} more"] * (more > 0)


def _changes(comparison: Comparison, rows: Sequence[Row]) -> Table:
    headings = ("Variant", "Metric", VERDICT, "Before", "After", "Change", "±", "Possible cause")
    cells = tuple(
        (
            row.variant,
            _metric(row),
            str(row.change.verdict),
            _number(row.change.before),
            f"{_number(row.change.after)} {row.change.unit}",
            _difference(row),
            "" if row.change.stderr is None else f"{row.change.stderr:.2g}",
            _cause(comparison, row),
        )
        for row in rows
    )
    words = frozenset({"Metric", VERDICT, "Possible cause"})
    verdicts = tuple(row.change.verdict for row in rows if row.change.verdict)
    return Table(headings, cells, words, verdicts=verdicts)


def _cause(comparison: Comparison, row: Row) -> str:
    """What else is different between the two measurements."""
    runs = (comparison.before, comparison.after)
    old, new = (run.records.get((row.variant, row.task)) for run in runs)
    planned = old is not None and new is not None and old.plan != new.plan
    words = ["another plan"] * planned + ["other versions"] * bool(comparison.differences)
    return ", ".join(words)


def _rest(rows: Sequence[Row], ranked: Sequence[Row]) -> list[Part]:
    """Metrics by variants, where a value differs; what is equal is counted."""
    differing = [row for row in rows if row.change.delta != 0]
    equal = sum(row.change.delta == 0 for row in ranked)
    parts: list[Part] = [Paragraph(f"{_count(equal, 'metric')} unchanged.")] if equal else []
    if not differing:
        return parts
    cells = {(_metric(row), row.variant): _cell(row) for row in differing}
    variants = list(dict.fromkeys(row.variant for row in differing))
    metrics = dict.fromkeys(_metric(row) for row in differing)
    body = tuple(
        (metric, *(cells.get((metric, variant), "=") for variant in variants)) for metric in metrics
    )
    title = f"{_count(len(differing), 'metric')} changed within tolerance, or not gated"
    return [*parts, Table(("Metric", *variants), body, title=title, folded=True)]


def _metric(row: Row) -> str:
    """The metric, with its task where its name does not begin with that."""
    name = row.change.metric
    return name if name.startswith(row.task) else f"{row.task} {name}"


def _cell(row: Row) -> str:
    change = row.change
    share = "" if change.relative is None else f" ({change.relative:+.2%})"
    return _number(change.after, 4) + share


def _statistics(rows: Sequence[Row]) -> Table:
    headings = ("Variant", "Metric", VERDICT, "Sentence")
    cells = tuple(
        (row.variant, row.task, str(row.change.verdict or "not gated"), row.change.sentence)
        for row in rows
    )
    return Table(headings, cells, frozenset(headings), "All metrics with their statistics", True)


def _left_out(number: int) -> str:
    return (
        f"{_count(number, 'row')} of least importance left out to fit a comment; "
        "--format json or html has them all."
    )


def _number(value: float | None, digits: int = 6) -> str:
    return "missing" if value is None else f"{value:.{digits}g}"


def _difference(row: Row) -> str:
    if row.change.delta is None:
        return MISSING
    share = "" if row.change.relative is None else f" ({row.change.relative:+.2%})"
    return f"{row.change.delta:+.3g}{share}"


def _data(comparison: Comparison) -> dict[str, Any]:
    """Everything, rows in the run's own order."""
    return {
        "schema": 1,
        "verdict": comparison.verdict.value,
        "exit_code": comparison.exit_code,
        "before": run_data(comparison.before),
        "after": run_data(comparison.after),
        "refusals": list(comparison.refusals),
        "losses": list(comparison.losses),
        "uncovered": list(comparison.uncovered),
        "differences": list(comparison.differences),
        "rows": [_row_data(row) for row in comparison.rows],
    }


def _row_data(row: Row) -> dict[str, Any]:
    change = row.change
    derived = {name: getattr(change, name) for name in ("delta", "relative", "sentence")}
    return {"variant": row.variant, "task": row.task, **asdict(change), **derived}
