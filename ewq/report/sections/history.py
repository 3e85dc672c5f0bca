"""The same measurements over several stored runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ewq.report.document import Bullets, Paragraph, Part, Plot, Point, Section, Table
from ewq.report.escaping import plot_text
from ewq.report.estimate import Estimate, figure_text
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

    @property
    def clocked(self) -> bool:
        """Whether it depends on the device."""
        figure = figure_of(self.task, self.metric)
        return figure is not None and figure.kind is Kind.CLOCK


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
        "settings and, for speed, device. Bars: 95 % intervals of each measurement; ewq compare "
        f"tests the differences.{versions}"
    )


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
    lines = {row.variant: _line(shown, tracked, row.variant) for row in shown.rows}
    lines = {variant: line for variant, line in lines.items() if len(line) > 1}
    if not lines:
        return None
    names = [plot_text(run.name) for run in shown.history]
    frame = layout(
        "", tracked.title,
        xaxis={"type": "category", "categoryorder": "array", "categoryarray": names},
    )  # fmt: skip
    return Plot(
        name=f"history-{tracked.task}",
        title=f"{tracked.title} over runs",
        caption="Oldest first.",
        figure={
            "data": [
                _trace(variant, names, line, tracked.digits, place)
                for place, (variant, line) in enumerate(lines.items())
            ],
            "layout": frame,
        },
        table=_table(shown.history, lines, tracked.digits),
        height_px=380,
    )


_Line = Mapping[int, Estimate]
"""Place of a run in the history -> its figure."""


def _line(shown: ReportedRun, tracked: Tracked, variant: str) -> _Line:
    """Figures of one variant in the runs whose settings and, for speed, device are the newest's."""
    key = (variant, tracked.task)
    newest, line = shown.run.records.get(key), dict[int, Estimate]()
    for place, run in enumerate(shown.history):
        record = run.records.get(key)
        if newest is None or record is None or tracked.metric not in record.metrics:
            continue
        same = (record.fingerprint, record.settings) == (newest.fingerprint, newest.settings)
        if same and not (tracked.clocked and comparable(run.machine, shown.run.machine)):
            line[place] = Estimate.from_metric(record.metrics[tracked.metric], tracked.scale)
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


def _table(runs: Sequence[Run], lines: Mapping[str, _Line], digits: int) -> Table:
    rows = tuple(
        (
            run.name,
            f"{run.datetime:%Y-%m-%d}",
            *(figure_text(line.get(place), digits) for line in lines.values()),
        )
        for place, run in enumerate(runs)
    )
    return Table(("Run", "Date", *lines), rows, frozenset({"Date"}))
