"""The same measurements over several stored runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ewq.record import Record
from ewq.report.document import Bullets, Paragraph, Part, Plot, Point, Section, Table
from ewq.report.escaping import plot_text
from ewq.report.estimate import MISSING, Estimate
from ewq.report.plotting import MARKS, SERIES, layout
from ewq.report.rows import ReportedRun
from ewq.storage.environment import comparable, differences
from ewq.storage.runs import Run
from ewq.tasks.table import Kind, figure_of


@dataclass(frozen=True)
class Tracked:
    """A metric that is followed over runs."""

    task: str
    metric: str
    title: str
    scale: float
    digits: int


TRACKED = (
    Tracked("perplexity", "perplexity", "Perplexity", 1.0, 3),
    Tracked("divergence", "kld_mean", "KLD, nats per token", 1.0, 5),
    Tracked("mmlu", "accuracy", "MMLU, %", 100.0, 1),
    Tracked("throughput", "decode_tokens_per_s", "Decode, tokens/s", 1.0, 1),
    Tracked("memory", "weights_bytes", "Weights, GB", 1e-9, 4),
)


def history(shown: ReportedRun) -> Section | None:
    """A plot for each tracked metric that at least two comparable runs have."""
    if len(shown.history) < 2:
        return None
    parts: list[Part] = [plot for tracked in TRACKED if (plot := _plot(shown, tracked)) is not None]
    left_out = _left_out(shown)
    if left_out:
        parts.append(Bullets(tuple(Point(text, open_question=True) for text in left_out)))
    if not parts:
        parts.append(Paragraph("These runs share nothing that may be compared."))
    return Section("history", "History", (_intro(shown), *parts))


def _intro(shown: ReportedRun) -> Paragraph:
    first, last = shown.history[0], shown.history[-1]
    changed = differences(first.machine, last.machine)
    versions = f" Between the first and the last: {'; '.join(changed)}." if changed else ""
    return Paragraph(
        f"{len(shown.history)} runs, oldest first. Lines join measurements with the same model, "
        f"settings and, for speed, the same device; bars are 95 % intervals of each measurement, "
        f"not of the differences, which ewq compare tests.{versions}"
    )


def _comparable(run: Run, shown: ReportedRun, tracked: Tracked, key: tuple[str, str]) -> bool:
    """Whether ``run``'s record may stand in one line with the newest run's."""
    old, new = run.records.get(key), shown.run.records.get(key)
    if old is None or new is None:
        return False
    same_device = not comparable(run.machine, shown.run.machine)
    same = old.fingerprint == new.fingerprint and old.settings == new.settings
    figure = figure_of(tracked.task, tracked.metric)
    return same and (same_device or figure is None or figure.kind is not Kind.CLOCK)


def _left_out(shown: ReportedRun) -> list[str]:
    """Runs that cannot be drawn beside the newest, with the reason."""
    sentences = []
    for run in shown.history[:-1]:
        if not run.records:
            sentences.append(f"{run.name}: holds no ewq record")
        elif next(iter(run.records.values())).fingerprint != shown.first.fingerprint:
            sentences.append(f"{run.name}: another model; nothing of it is drawn")
        elif reasons := comparable(run.machine, shown.run.machine):
            sentences.append(f"{run.name}: {'; '.join(reasons)}; its speed is not drawn")
    return sentences


def _plot(shown: ReportedRun, tracked: Tracked) -> Plot | None:
    lines = {
        row.variant: found
        for row in shown.rows
        if len(found := _line(shown, tracked, (row.variant, tracked.task))) > 1
    }
    if not lines:
        return None
    names = [plot_text(run.name) for run in shown.history]
    runs = list(shown.history)
    traces = [
        _trace(variant, [(names[runs.index(run)], record) for run, record in found], tracked, place)
        for place, (variant, found) in enumerate(lines.items())
    ]
    frame = layout(
        "", tracked.title,
        xaxis={"type": "category", "categoryorder": "array", "categoryarray": names},
    )  # fmt: skip
    return Plot(
        name=f"history-{tracked.task}",
        title=f"{tracked.title} over runs",
        caption="Oldest first.",
        figure={"data": traces, "layout": frame},
        table=_table(runs, lines, tracked),
        height_px=380,
    )


_Line = list[tuple[Run, Record]]


def _line(shown: ReportedRun, tracked: Tracked, key: tuple[str, str]) -> _Line:
    return [
        (run, run.records[key])
        for run in shown.history
        if _comparable(run, shown, tracked, key) and tracked.metric in run.records[key].metrics
    ]


def _estimate(record: Record, tracked: Tracked) -> Estimate:
    return Estimate.from_metric(record.metrics[tracked.metric], tracked.scale)


def _trace(
    variant: str, points: Sequence[tuple[str, Record]], tracked: Tracked, place: int
) -> dict[str, Any]:
    found = [_estimate(record, tracked) for _, record in points]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plot_text(variant),
        "x": [name for name, _ in points],
        "y": [estimate.value for estimate in found],
        "error_y": {
            "type": "data",
            "array": [estimate.half_width for estimate in found],
            "thickness": 1,
        },
        "line": {"color": SERIES[place % len(SERIES)], "width": 1.5},
        "marker": {"symbol": MARKS[place % len(MARKS)], "size": 8},
        "hovertemplate": f"%{{x}}<br>%{{y:.{tracked.digits}f}}<extra>{plot_text(variant)}</extra>",
    }


def _table(runs: Sequence[Run], lines: dict[str, _Line], tracked: Tracked) -> Table:
    cells = {
        (variant, run.path): _estimate(record, tracked).text(tracked.digits)
        for variant, line in lines.items()
        for run, record in line
    }
    rows = tuple(
        (
            run.name,
            f"{run.datetime:%Y-%m-%d}",
            *(cells.get((variant, run.path), MISSING) for variant in lines),
        )
        for run in runs
    )
    return Table(("Run", "Date", *lines), rows, frozenset({"Date"}))
