"""The same measurements over several stored runs, as a section of a report or a page of its own."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from ewq.gating.trend import History, Trend, history_of
from ewq.report.document import (
    VERDICT,
    Bullets,
    Page,
    Paragraph,
    Part,
    Plot,
    Point,
    Section,
    Table,
    plot_text,
)
from ewq.report.formats import FORMATS as PAGES
from ewq.report.formats import csv_of
from ewq.report.rows import MISSING, Estimate, ReportedRun, metric_title, run_data
from ewq.storage.environment import differences

VALUES = (
    "variant", "task", "metric", "run", "commit", "datetime", "value", "stderr", "n", "unit"
)  # fmt: skip


def history(shown: ReportedRun) -> Section | None:
    """The section of a report on several runs."""
    return history_section(history_of(shown.history)) if len(shown.history) > 1 else None


def history_page(found: History) -> Page:
    """The history alone; its data is every value followed."""
    newest = found.runs[-1]
    model = next(iter(newest.records.values())).model
    subtitle = f"{len(found.runs)} runs up to {newest.name} of {newest.datetime:%Y-%m-%d}"
    section = replace(history_section(found), title="")
    return Page(f"{model}: {headline(found)}", subtitle, (section,), _data(found))


def headline(found: History) -> str:
    """What the newest run is against those before it, in a few words."""
    worse = [trend for trend in found.trends if trend.verdict.value == "fail"]
    if worse:
        names = ", ".join(f"{trend.record.variant} {trend.metric}" for trend in worse)
        return f"{len(worse)} of {len(found.trends)} figures worse than expected: {names}"
    return "as expected" if found.exit_code == 0 else "too few runs to expect anything"


def history_section(found: History) -> Section:
    """The newest run against what is expected of it, changes of level, and a plot a metric."""
    changed = differences(found.runs[0].machine, found.runs[-1].machine)
    intro = Paragraph(
        f"{len(found.runs)} runs of the same model, settings and device. Expected: where all of "
        "the newest values lie in 95 % of runs that changed nothing. Change of level: found in "
        "1 % of the lines that have none."
        + f" Between the first and the last: {'; '.join(changed)}."
        * bool(changed)
    )
    parts: list[Part] = [intro, *([_table(found.trends)] if found.trends else [])]
    parts += [_plot(found, list(own)) for _, own in groupby(found.trends, key=_title)]
    if found.left_out:
        points = tuple(Point(text, open_question=True) for text in found.left_out)
        parts.append(Bullets(points, "Runs that are not comparable", folded=len(points) > 3))
    return Section("history", "History", tuple(parts))


def _title(trend: Trend) -> str:
    return metric_title(trend.record.task, trend.metric)


def _number(value: float) -> str:
    return f"{value:.5g}" if abs(value) < 1e5 else f"{value:,.0f}"


def _table(trends: Sequence[Trend]) -> Table:
    rows = [
        {
            "Variant": trend.record.variant,
            "Metric": _title(trend),
            VERDICT: trend.verdict.value if trend.expected else "too few runs",
            "Newest": _number(trend.metrics[-1].value),
            "Expected": " to ".join(map(_number, trend.expected)) if trend.expected else MISSING,
            "Runs": str(len(trend.runs)),
            "Change of level": "; ".join(
                f"{trend.runs[each.place].name}: {_number(each.before)} → {_number(each.after)}"
                for each in trend.shifts
            ),
        }
        for trend in trends
    ]
    verdicts = tuple(trend.verdict for trend in trends)
    return Table.of(rows, "Metric", VERDICT, "Change of level", verdicts=verdicts)


def _plot(found: History, trends: Sequence[Trend]) -> Plot:
    """Lines by variant, a larger mark where a level begins, a bar where the newest is expected."""
    lines, cells = [], []
    for trend in trends:
        pairs = [*zip(trend.runs, trend.metrics, strict=True)]
        cells.append({run.path: Estimate.of(metric).text() for run, metric in pairs})
        drawn = {"x": [plot_text(run.name) for run, _ in pairs], "y": [m.value for _, m in pairs]}
        starts = [shift.place for shift in trend.shifts]
        name = plot_text(trend.record.variant)
        lines.append({**drawn, "name": name, "starts": starts, "expected": trend.expected})
    rows = tuple(
        (run.name, f"{run.datetime:%Y-%m-%d}", *(line.get(run.path, MISSING) for line in cells))
        for run in found.runs
    )
    first, title = trends[0], _title(trends[0])
    axes, runs = ["", f"{title}, {first.metrics[-1].unit}"], [plot_text(r.name) for r in found.runs]
    headings = ("Run", "Date", *(trend.record.variant for trend in trends))
    return Plot(
        name=f"history-{first.record.task}-{first.metric}",
        title=f"{title} over runs",
        caption="Large marks: a new level. Bars at the newest run: what is expected of it.",
        figure={"kind": "history", "axes": axes, "runs": runs, "lines": lines},
        table=Table(headings, rows, frozenset({"Date"})),
    )


def _data(found: History) -> dict[str, Any]:
    lines, values = list[dict[str, Any]](), list[dict[str, Any]]()
    for trend in found.trends:
        names = (trend.record.variant, trend.record.task, trend.metric)
        facts = {"verdict": trend.verdict.value, "expected": trend.expected}
        shifts = [s._asdict() | {"run": trend.runs[s.place].name} for s in trend.shifts]
        lines.append({**dict(zip(VALUES, names, strict=False)), **facts, "shifts": shifts})
        for run, each in zip(trend.runs, trend.metrics, strict=True):
            stored = (run.name, run.commit, run.datetime.isoformat())
            figures = (each.value, each.stderr, each.n, each.unit)
            values.append(dict(zip(VALUES, (*names, *stored, *figures), strict=True)))
    return {
        "schema": 1,
        "exit_code": found.exit_code,
        "runs": [run_data(run) for run in found.runs],
        "left_out": list(found.left_out),
        "lines": lines,
        "values": values,
    }


FORMATS: dict[str, Callable[[Page], str]] = {
    **PAGES,
    "csv": lambda page: csv_of(VALUES, (each.values() for each in page.data["values"])),
}
