"""Quality against size: KLD, perplexity and MMLU, each with its Pareto front."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ewq.measurement import Metric
from ewq.report import kinds
from ewq.report.document import Label, Paragraph, Part, Plot, Section, Table
from ewq.report.drawing import layout, marks, padded
from ewq.report.escaping import plot_text
from ewq.report.estimate import Estimate
from ewq.report.evidence import MMLU_TASKS, at_chance, weights_bytes
from ewq.report.kinds import kind_of
from ewq.report.pareto import front
from ewq.report.rows import VariantRow, with_error
from ewq.report.subject import Reported


@dataclass(frozen=True)
class Measure:
    """One way to see quality."""

    name: str
    title: str
    axis: str
    value: Callable[[VariantRow], Estimate | None]
    """In the axis's unit."""
    higher_is_better: bool
    digits: int
    explained: str


def section(subject: Reported) -> Section | None:
    """A plot for each measure that at least one variant with a known size has."""
    parts: list[Part] = [
        plot for measure in measures(subject) if (plot := _plot(subject, measure)) is not None
    ]
    if not parts:
        return None
    intro = Paragraph(
        "Left is smaller. The line joins the Pareto front: variants that no other beats in both "
        "size and quality by the measured values; where bars overlap, the order is not certain. "
        "Open marks are uniform controls, filled marks EWQ's plans."
    )
    return Section("quality", "Quality against size", (intro, *parts))


def measures(subject: Reported) -> tuple[Measure, ...]:
    """What can be drawn of this run; perplexity relative to FP16 where that was paired."""
    guessed = any(at_chance(row, "mmlu") for row in subject.rows)
    paired = any(row.metric("perplexity", "ln_ppl_ratio") for row in subject.rows)
    return (
        Measure(
            "kld", "KLD from FP16", "mean KLD, millinats", _kld, False, 2,
            "How far next-token distributions moved from FP16's; lower is better. "
            "Bars: 95 % intervals.",
        ),
        _RELATIVE_PERPLEXITY if paired else _PERPLEXITY,
        _mmlu(subject, "mmlu"),
        # The letters' score is the usual one; the cloze form stands in where it says nothing.
        *([_mmlu(subject, "mmlu_cloze")] if guessed else []),
    )  # fmt: skip


def _mmlu(subject: Reported, task: str) -> Measure:
    """Accuracy with the error of its difference from FP16, which itself differs by nothing."""
    paired = any(row.metric(task, "accuracy_delta") for row in subject.rows)

    def value(row: VariantRow) -> Estimate | None:
        accuracy = _scaled(row.metric(task, "accuracy"), 100)
        delta = _scaled(row.metric(task, "accuracy_delta"), 100)
        if accuracy is None or not paired:
            return accuracy
        return replace(delta or Estimate(0.0), value=accuracy.value)

    explained = (
        "Higher is better. Bars: 95 % intervals of the paired difference from FP16, which itself "
        "has none."
        if paired
        else "Higher is better. Bars: 95 % intervals of each accuracy by itself."
    )
    return Measure(
        task.replace("_", "-"), MMLU_TASKS[task], "accuracy, %", value, True, 1, explained
    )


def _kld(row: VariantRow) -> Estimate | None:
    return _scaled(row.metric("divergence", "kld_mean"), 1000)


def _change_percent(row: VariantRow) -> Estimate | None:
    metric = row.metric("perplexity", "ln_ppl_ratio")
    if metric is not None:
        return Estimate.percent_of_ratio(metric)
    is_base = row.variant == "fp16" and row.metric("perplexity", "perplexity")
    return Estimate(0.0) if is_base else None


def _scaled(metric: Metric | None, factor: float) -> Estimate | None:
    return None if metric is None else Estimate.of(metric, factor)


_RELATIVE_PERPLEXITY = Measure(
    "perplexity", "Perplexity", "change from FP16, %", _change_percent, False, 2,
    "Lower is better. Bars: 95 % intervals of the paired difference on the same tokens.",
)  # fmt: skip
_PERPLEXITY = Measure(
    "perplexity", "Perplexity", "perplexity",
    lambda row: _scaled(row.metric("perplexity", "perplexity"), 1.0), False, 2,
    "Lower is better. Nothing was paired with FP16: bars are 95 % intervals of the texts' own "
    "spread, far wider than the error of a difference between two variants.",
)  # fmt: skip


@dataclass(frozen=True)
class _Dot:
    row: VariantRow
    size: float
    """In the report's unit."""
    found: Estimate

    @property
    def value(self) -> float:
        return self.found.value


def fronts(subject: Reported) -> dict[str, list[str]]:
    """Measure -> the variants on its Pareto front, smallest first."""
    return {
        measure.name: [name for _, _, name in _front(dots, measure)]
        for measure in measures(subject)
        if (dots := _dots(subject, measure))
    }


def _dots(subject: Reported, measure: Measure) -> list[_Dot]:
    return [
        _Dot(row, subject.unit.of(size), found)
        for row in subject.rows
        if (size := weights_bytes(row)) and (found := measure.value(row))
    ]


def _front(dots: list[_Dot], measure: Measure) -> list[tuple[float, float, str]]:
    """``(size, value, variant)`` of the dots that none beats."""
    sign = -1 if measure.higher_is_better else 1
    best = front([(dot.size, sign * dot.value, dot.row.variant) for dot in dots])
    return [(size, sign * badness, name) for size, badness, name in best]


def _plot(subject: Reported, measure: Measure) -> Plot | None:
    dots = _dots(subject, measure)
    if not dots:
        return None
    best = _front(dots, measure)
    chance = any(at_chance(dot.row, measure.name.replace("-", "_")) for dot in dots)
    doubt = " At chance level: differences mean nothing." if chance else ""
    return Plot(
        name=f"quality-{measure.name}",
        title=f"{measure.title} against size",
        caption=f"{measure.explained}{doubt}",
        figure=_figure(dots, [(x, y) for x, y, _ in best], measure, subject.unit.name),
        table=_table(dots, [name for _, _, name in best], measure, subject.unit.name),
        labels=tuple(
            Label(dot.size, dot.value, plot_text(dot.row.variant), *dot.found.bounds)
            for dot in dots
        ),
    )


def _figure(
    dots: list[_Dot], line: list[tuple[float, float]], measure: Measure, unit: str
) -> dict[str, Any]:
    joined = {
        "type": "scatter", "mode": "lines", "name": "Pareto front", "hoverinfo": "skip",
        "x": [x for x, _ in line], "y": [y for _, y in line],
        "line": {"color": kinds.GREY, "width": 1.5, "dash": "dot", "shape": "hv"},
    }  # fmt: skip
    ends = [end for dot in dots for end in dot.found.bounds]
    return {
        "data": [joined, *_marks(dots, measure, unit)],
        "layout": layout(
            f"weights, {unit}",
            measure.axis,
            xaxis={"range": padded([dot.size for dot in dots], 0.12)},
            yaxis={"range": padded(ends, 0.1)},
        ),
    }


def _marks(dots: list[_Dot], measure: Measure, unit: str) -> list[dict[str, Any]]:
    """One trace for each kind that occurs, so that the legend is short."""
    traces = []
    for kind in kinds.KINDS:
        own = [dot for dot in dots if kind_of(dot.row.variant) is kind]
        if own:
            trace = marks(
                kind,
                [dot.row.variant for dot in own],
                [dot.size for dot in own],
                [dot.value for dot in own],
                {"array": [dot.found.half_width for dot in own]},
            )
            figures = f"%{{x:.3g}} {unit}<br>%{{y:.{measure.digits}f}}"
            traces.append({**trace, "hovertemplate": f"%{{text}}<br>{figures}<extra></extra>"})
    return traces


def _table(dots: list[_Dot], on_front: list[str], measure: Measure, unit: str) -> Table:
    rows = tuple(
        (
            dot.row.variant,
            f"{dot.size:.4g}",
            with_error(dot.value, dot.found.stderr, measure.digits),
            "yes" if dot.row.variant in on_front else "no",
            kind_of(dot.row.variant).label,
        )
        for dot in sorted(dots, key=lambda dot: dot.size)
    )
    headings = ("Variant", unit, f"{measure.title}: {measure.axis}", "On the front", "Kind")
    return Table(headings, rows, frozenset({"Kind"}))
