"""The same measurements over several stored runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ewq.metrics import is_clocked
from ewq.record import Record
from ewq.report import kinds
from ewq.report.document import Bullets, Paragraph, Part, Plot, Point, Section, Table
from ewq.report.drawing import layout
from ewq.report.escaping import plot_text
from ewq.report.estimate import Estimate
from ewq.report.rows import ABSENT, with_error
from ewq.report.subject import Reported
from ewq.storage.environment import comparable, differences
from ewq.storage.runs import Run


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
    Tracked("divergence", "kld_mean", "KLD, millinats", 1000.0, 2),
    Tracked("mmlu", "accuracy", "MMLU, %", 100.0, 1),
    Tracked("throughput", "decode_tokens_per_s", "Decode, tokens/s", 1.0, 1),
    Tracked("memory", "weights_bytes", "Weights, GB", 1e-9, 4),
)


def section(subject: Reported) -> Section | None:
    """A plot for each tracked metric that at least two comparable runs have."""
    if len(subject.history) < 2:
        return None
    parts: list[Part] = [
        plot for tracked in TRACKED if (plot := _plot(subject, tracked)) is not None
    ]
    left_out = _left_out(subject)
    if left_out:
        parts.append(Bullets(tuple(Point(text, open_question=True) for text in left_out)))
    if not parts:
        parts.append(Paragraph("These runs share nothing that may be compared."))
    return Section("history", "History", (_intro(subject), *parts))


def _intro(subject: Reported) -> Paragraph:
    first, last = subject.history[0], subject.history[-1]
    changed = differences(first.machine, last.machine)
    versions = f" Between the first and the last: {'; '.join(changed)}." if changed else ""
    return Paragraph(
        f"{len(subject.history)} runs, oldest first. Lines join measurements with the same model, "
        f"settings and, for speed, the same device; bars are 95 % intervals of each measurement, "
        f"not of the differences, which ewq compare tests.{versions}"
    )


def _comparable(run: Run, subject: Reported, tracked: Tracked, key: tuple[str, str]) -> bool:
    """Whether ``run``'s record may stand in one line with the newest run's."""
    old, new = run.records.get(key), subject.run.records.get(key)
    if old is None or new is None:
        return False
    same_device = not comparable(run.machine, subject.run.machine)
    same = old.fingerprint == new.fingerprint and old.settings == new.settings
    return same and (same_device or not is_clocked(tracked.metric))


def _left_out(subject: Reported) -> list[str]:
    """Runs that cannot be drawn beside the newest, with the reason."""
    sentences = []
    for run in subject.history[:-1]:
        if not run.records:
            sentences.append(f"{run.name}: holds no ewq record")
        elif next(iter(run.records.values())).fingerprint != subject.first.fingerprint:
            sentences.append(f"{run.name}: another model; nothing of it is drawn")
        elif reasons := comparable(run.machine, subject.run.machine):
            sentences.append(f"{run.name}: {'; '.join(reasons)}; its speed is not drawn")
    return sentences


def _plot(subject: Reported, tracked: Tracked) -> Plot | None:
    lines = {
        row.variant: found
        for row in subject.rows
        if len(found := _line(subject, tracked, (row.variant, tracked.task))) > 1
    }
    if not lines:
        return None
    names = [plot_text(run.name) for run in subject.history]
    runs = list(subject.history)
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


def _line(subject: Reported, tracked: Tracked, key: tuple[str, str]) -> _Line:
    return [
        (run, run.records[key])
        for run in subject.history
        if _comparable(run, subject, tracked, key) and tracked.metric in run.records[key].metrics
    ]


def _trace(
    variant: str, points: Sequence[tuple[str, Record]], tracked: Tracked, place: int
) -> dict[str, Any]:
    metrics = [record.metrics[tracked.metric] for _, record in points]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plot_text(variant),
        "x": [name for name, _ in points],
        "y": [tracked.scale * metric.value for metric in metrics],
        "error_y": {
            "type": "data",
            "array": [Estimate.of(metric, tracked.scale).half_width for metric in metrics],
            "thickness": 1,
        },
        "line": {"color": kinds.SERIES[place % len(kinds.SERIES)], "width": 1.5},
        "marker": {"symbol": kinds.MARKS[place % len(kinds.MARKS)], "size": 8},
        "hovertemplate": f"%{{x}}<br>%{{y:.{tracked.digits}f}}<extra>{plot_text(variant)}</extra>",
    }


def _table(runs: Sequence[Run], lines: dict[str, _Line], tracked: Tracked) -> Table:
    cell: Callable[[Record], str] = lambda record: with_error(  # noqa: E731
        tracked.scale * record.metrics[tracked.metric].value,
        _error(record, tracked),
        tracked.digits,
    )
    rows = []
    for run in runs:
        found = {variant: dict(_by_path(line)) for variant, line in lines.items()}
        cells = [cell(own[run.path]) if run.path in own else ABSENT for own in found.values()]
        rows.append((run.name, f"{run.datetime:%Y-%m-%d}", *cells))
    return Table(("Run", "Date", *lines), tuple(rows), frozenset({"Date"}))


def _by_path(line: _Line) -> list[tuple[Any, Record]]:
    return [(run.path, record) for run, record in line]


def _error(record: Record, tracked: Tracked) -> float | None:
    stderr = record.metrics[tracked.metric].stderr
    return None if stderr is None else tracked.scale * stderr
