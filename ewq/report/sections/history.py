"""The same measurements over several stored runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ewq.report.document import Bullets, Paragraph, Part, Plot, Point, Section, Table
from ewq.report.escaping import plot_text
from ewq.report.plotting import MARKS, SERIES, layout
from ewq.report.rows import Estimate, ReportedRun, figure_text
from ewq.storage.environment import comparable, differences
from ewq.tasks.table import Kind, figure_of


class Tracked(NamedTuple):
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
_Line = Mapping[int, Estimate]
"""Place of a run in the history -> its figure."""


def history(shown: ReportedRun) -> Section | None:
    """A plot for each tracked metric that at least two comparable runs have."""
    if len(shown.history) < 2:
        return None
    changed = differences(shown.history[0].machine, shown.run.machine)
    versions = f" Between the first and the last: {'; '.join(changed)}." if changed else ""
    intro = Paragraph(
        f"{len(shown.history)} runs, oldest first. Lines join measurements with the same model, "
        "settings and, for speed, device. Bars: 95 % intervals of each measurement; ewq compare "
        f"tests the differences.{versions}"
    )
    parts: list[Part] = [plot for tracked in TRACKED if (plot := _plot(shown, tracked)) is not None]
    if left_out := _left_out(shown):
        parts.append(Bullets(tuple(left_out)))
    if not parts:
        parts.append(Paragraph("These runs share nothing that may be compared."))
    return Section("history", "History", (intro, *parts))


def _left_out(shown: ReportedRun) -> list[Point]:
    """Runs that cannot be drawn beside the newest, with the reason."""
    sentences = []
    for run in shown.history[:-1]:
        if not run.records:
            sentences.append(f"{run.name}: holds no ewq record")
        elif next(iter(run.records.values())).fingerprint != shown.first.fingerprint:
            sentences.append(f"{run.name}: another model; nothing of it is drawn")
        elif reasons := comparable(run.machine, shown.run.machine):
            sentences.append(f"{run.name}: {'; '.join(reasons)}; its speed is not drawn")
    return [Point(text, open_question=True) for text in sentences]


def _plot(shown: ReportedRun, tracked: Tracked) -> Plot | None:
    lines = {row.variant: _line(shown, tracked, row.variant) for row in shown.rows}
    lines = {variant: line for variant, line in lines.items() if len(line) > 1}
    if not lines:
        return None
    names = [plot_text(run.name) for run in shown.history]
    axis = {"type": "category", "categoryorder": "array", "categoryarray": names}
    traces = [
        _trace(variant, names, line, tracked.digits, place)
        for place, (variant, line) in enumerate(lines.items())
    ]
    rows = tuple(
        (
            run.name,
            f"{run.datetime:%Y-%m-%d}",
            *(figure_text(line.get(place), tracked.digits) for line in lines.values()),
        )
        for place, run in enumerate(shown.history)
    )
    return Plot(
        name=f"history-{tracked.task}",
        title=f"{tracked.title} over runs",
        caption="Oldest first.",
        figure={"data": traces, "layout": layout("", tracked.title, xaxis=axis)},
        table=Table(("Run", "Date", *lines), rows, frozenset({"Date"})),
        height_px=380,
    )


def _line(shown: ReportedRun, tracked: Tracked, variant: str) -> _Line:
    """Figures of one variant in the runs whose settings and, for speed, device are the newest's."""
    key, line = (variant, tracked.task), dict[int, Estimate]()
    figure, newest = figure_of(tracked.task, tracked.metric), shown.run.records.get(key)
    clocked = figure is not None and figure.kind is Kind.CLOCK
    for place, run in enumerate(shown.history):
        record = run.records.get(key)
        if newest is None or record is None or tracked.metric not in record.metrics:
            continue
        same = (record.fingerprint, record.settings) == (newest.fingerprint, newest.settings)
        if same and not (clocked and comparable(run.machine, shown.run.machine)):
            line[place] = Estimate.of(record.metrics[tracked.metric], tracked.scale)
    return line


def _trace(
    variant: str, names: Sequence[str], line: _Line, digits: int, place: int
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plot_text(variant),
        "x": [names[run] for run in line],
        "y": [estimate.value for estimate in line.values()],
        "error_y": {
            "type": "data",
            "array": [estimate.half_width for estimate in line.values()],
            "thickness": 1,
        },
        "line": {"color": SERIES[place % len(SERIES)], "width": 1.5},
        "marker": {"symbol": MARKS[place % len(MARKS)], "size": 8},
        "hovertemplate": f"%{{x}}<br>%{{y:.{digits}f}}<extra>{plot_text(variant)}</extra>",
    }
