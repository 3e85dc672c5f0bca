"""Two stored runs against each other as a page; as Markdown, a comment under a pull request."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ewq.gating.change import Change
from ewq.gating.compare import Comparison
from ewq.record import Verdict
from ewq.report.document import VERDICT, Bullets, Page, Paragraph, Part, Point, Section, Table
from ewq.report.formats import to_html, to_json, to_markdown
from ewq.report.rows import MISSING, metric_title, run_data
from ewq.tasks.table import known_task

COMMENT_LIMIT = 65_536
_NOTABLE = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.IMPROVED)
"""Verdicts on changes that a reader must see, the gravest first."""


def to_comment(comparison: Comparison, limit: int = COMMENT_LIMIT) -> str:
    """A comment of fewer than ``limit`` bytes, cut at a line: the least important stands last."""
    text = to_markdown(comparison_page(comparison, short=True), level=3)
    if len(text.encode()) < limit:
        return text
    note = "\n\nThe rest does not fit a comment; `--format json` or `html` has it all.\n"
    room = limit - len(note.encode()) - 1
    return text.encode()[:room].decode(errors="ignore").rpartition("\n")[0] + note


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "md": to_comment,
    "json": lambda comparison: to_json(comparison_page(comparison)),
    "html": lambda comparison: to_html(comparison_page(comparison)),
}


def comparison_page(comparison: Comparison, *, short: bool = False) -> Page:
    """The verdict, what changed and its possible causes; behind titles the rest and statistics."""
    notable = _notable(comparison)
    others = [row for row in comparison.rows if row not in notable]
    ranked = notable + sorted(others, key=lambda row: row.verdict is None)
    parts: list[Part] = [_changes(comparison, notable)] if notable else []
    parts += _bullets(comparison)
    if equal := sum(row.delta == 0 for row in ranked):
        parts.append(Paragraph(f"{_count(equal, 'metric')} unchanged."))
    if rest := [row for row in ranked[len(notable) :] if row.delta != 0]:
        parts.append(_rest(rest))
    if ranked and not short:
        headings = ("Variant", "Metric", VERDICT, "Sentence")
        cells = tuple(
            (row.variant, row.task, str(row.verdict or "not gated"), row.sentence) for row in ranked
        )
        title = "All metrics with their statistics"
        parts.append(Table(headings, cells, frozenset(headings), title, folded=True))
    runs = f"{comparison.before.name} → {comparison.after.name}"
    section = Section("comparison", "", tuple(parts))
    return Page(f"ewq: {headline(comparison)}", runs, (section,), _data(comparison))


def headline(comparison: Comparison) -> str:
    """The verdict in a few words."""
    if comparison.exit_code == 2:
        return "not comparable"
    verdicts = [row.verdict for row in _notable(comparison)]
    failed, open_ones, improved = (verdicts.count(verdict) for verdict in _NOTABLE)
    if comparison.exit_code == 1:
        title = "regression"
        counts = [(failed, "metric", "worse"), (len(comparison.losses), "benchmark", "lost")]
    else:
        calm = _same_quality(comparison) and not improved
        title = "no change" if calm else "no regression"
        counts = [(improved, "metric", "better"), (open_ones, "metric", "inconclusive")]
    words = [f"{_count(number, noun)} {how}" for number, noun, how in counts if number]
    return f"{title}: {', '.join(words)}" if words else title


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _same_quality(comparison: Comparison) -> bool:
    """Whether every answer and every text's score is what it was; clocks never are."""
    old, new = comparison.before.records, comparison.after.records
    timeless = [key for key in new if (task := known_task(key[1])) and not task.is_clocked]
    return all(
        old[key].items == new[key].items and old[key].metrics == new[key].metrics
        for key in timeless
        if key in old
    )


def _notable(comparison: Comparison) -> list[Change]:
    """What changed for certain, or perhaps by more than is tolerated, the gravest first."""
    return [
        row
        for verdict in _NOTABLE
        for row in comparison.rows
        if row.verdict is verdict and (row.worse or verdict is not Verdict.INCONCLUSIVE)
    ]


def _bullets(comparison: Comparison) -> list[Bullets]:
    """What was lost or cannot be compared; behind titles, versions and what one run lacks."""
    urgent = [Point(text, "lost", bad=True) for text in comparison.losses]
    urgent += [Point(text, "not comparable") for text in comparison.refusals]
    differing, alone = (map(Point, of) for of in (comparison.differences, comparison.uncovered))
    found = (
        Bullets(tuple(urgent)),
        Bullets(tuple(differing), "Versions that differ", folded=True),
        Bullets(tuple(alone), "Measured by one run only", folded=True),
    )
    return [bullets for bullets in found if bullets.points]


def _changes(comparison: Comparison, rows: Sequence[Change]) -> Table:
    cells = []
    for row in rows:
        runs = (comparison.before, comparison.after)
        old, new = (run.records.get((row.variant, row.task)) for run in runs)
        planned = old is not None and new is not None and old.plan != new.plan
        causes = ["another plan"] * planned + ["other versions"] * bool(comparison.differences)
        made = {
            "Variant": row.variant,
            "Metric": metric_title(row.task, row.metric),
            VERDICT: str(row.verdict),
            "Before": _number(row.before),
            "After": f"{_number(row.after)} {row.unit}",
            "Change": MISSING if row.delta is None else f"{row.delta:+.3g}{_share(row)}",
            "±": "" if row.stderr is None else f"{row.stderr:.2g}",
            "Possible cause": ", ".join(causes),
        }
        cells.append(made)
    verdicts = tuple(row.verdict for row in rows if row.verdict)
    return Table.of(cells, "Metric", VERDICT, "Possible cause", verdicts=verdicts)


def _rest(rows: Sequence[Change]) -> Table:
    cells = {
        (metric_title(row.task, row.metric), row.variant): _number(row.after, 4) + _share(row)
        for row in rows
    }
    metrics, variants = (dict.fromkeys(names) for names in zip(*cells, strict=True))
    body = tuple(
        (metric, *(cells.get((metric, variant), "=") for variant in variants)) for metric in metrics
    )
    title = f"{_count(len(rows), 'metric')} changed within tolerance, or not gated"
    return Table(("Metric", *variants), body, title=title, folded=True)


def _number(value: float | None, digits: int = 6) -> str:
    return "missing" if value is None else f"{value:.{digits}g}"


def _share(row: Change) -> str:
    return "" if row.relative is None else f" ({row.relative:+.2%})"


def _data(comparison: Comparison) -> dict[str, Any]:
    lists = ("refusals", "losses", "uncovered", "differences")
    return {
        "schema": 1,
        "verdict": comparison.verdict.value,
        "exit_code": comparison.exit_code,
        "before": run_data(comparison.before),
        "after": run_data(comparison.after),
        **{name: list(getattr(comparison, name)) for name in lists},
        "rows": [
            asdict(row) | {name: getattr(row, name) for name in ("delta", "relative", "sentence")}
            for row in comparison.rows
        ],
    }
