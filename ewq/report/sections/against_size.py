"""Quality and speed against size, each measure of quality with its Pareto front."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from ewq.report.document import Paragraph, Part, Plot, Section, Table, plot_text
from ewq.report.rows import MMLU_TASKS, Estimate, ReportedRun, VariantRow, figure_text
from ewq.report.table import mmlu_task, tokens_per_s
from ewq.variants import REFERENCE

DECODE = "decode_tokens_per_s"
BARS = (
    " Bars: 95 % intervals. Dotted: the Pareto front, variants that no other beats in both size "
    "and the figure; where bars overlap, the order is uncertain. Open marks: uniform controls."
)


class Measure(NamedTuple):
    """One way to see quality."""

    name: str
    title: str
    axis: str
    estimate: Callable[[VariantRow], Estimate | None]
    digits: int
    caption: str
    higher_is_better: bool = False


class SizedPoint(NamedTuple):
    """A variant's size and one of its figures with the ends of its error bar, in axes' units."""

    variant: str
    size: float
    value: float
    low: float
    high: float
    text: str = ""
    kind: str = ""


def pareto_front(points: Sequence[SizedPoint], *, higher_is_better: bool) -> list[SizedPoint]:
    """The points, smallest first, that no other beats in both size and value; equals all stay."""
    sign = -1 if higher_is_better else 1
    kept: list[SizedPoint] = []
    for point in sorted(points, key=lambda p: (p.size, sign * p.value, p.variant)):
        better = not kept or sign * point.value < sign * kept[-1].value
        if better or (point.size, point.value) == (kept[-1].size, kept[-1].value):
            kept.append(point)
    return kept


def quality_plots(shown: ReportedRun) -> dict[str, tuple[Plot, list[str]]]:
    """Measure, the most sensitive first -> its picture and its Pareto front, smallest first."""
    return _plots(shown, "quality-", *_measures(shown.rows))


def _plots(
    shown: ReportedRun, prefix: str, *measures: Measure
) -> dict[str, tuple[Plot, list[str]]]:
    found = {}
    for measure in measures:
        points = []
        for row in shown.rows:
            if row.weights_bytes and (each := measure.estimate(row)):
                size, value, half = row.weights_bytes, each.value, each.half_width
                place = (size / 1e9, value, value - half, value + half)
                text = each.text(measure.digits)
                points.append(SizedPoint(row.variant, *place, text, row.kind.label))
        if not points:
            continue
        front = pareto_front(points, higher_is_better=measure.higher_is_better)
        rows = [
            {
                "Variant": point.variant,
                "GB": f"{point.size:.4g}",
                f"{measure.title}: {measure.axis}": point.text,
                "On the front": "yes" if point in front else "no",
                "Kind": point.kind,
            }
            for point in sorted(points, key=lambda point: point.size)
        ]
        plot = Plot(
            f"{prefix}{measure.name}",
            f"{measure.title} against size",
            measure.caption + BARS,
            Table.of(rows, "Kind"),
            {
                "kind": "sizes",
                "axes": ("weights, GB", measure.axis),
                "points": [p._asdict() | {"variant": plot_text(p.variant)} for p in points],
                "front": [(point.size, point.value) for point in front],
            },
        )
        found[measure.name] = plot, [point.variant for point in front]
    return found


def quality(shown: ReportedRun) -> Section | None:
    """The measures that the report does not begin with."""
    plots = [plot for plot, _ in quality_plots(shown).values()][1:]
    return Section("quality", "Quality against size", tuple(plots)) if plots else None


def _measures(rows: Sequence[VariantRow]) -> list[Measure]:
    """What can be drawn, the most sensitive first; the cloze form before letters that guess."""
    caption = "Divergence of next-token distributions from FP16's; lower is better."
    names = ("kld", "KLD from FP16", "mean KLD, nats per token")
    kld = Measure(*names, lambda row: row.estimate("divergence", "kld_mean"), 5, caption)
    tasks = dict.fromkeys((mmlu_task(rows), "mmlu"))
    caption = "Lower is better. Intervals of the paired difference from FP16."
    names = ("perplexity", "Perplexity", "change from FP16, %")
    perplexity = Measure(*names, _perplexity, 2, caption)
    return [kld, perplexity, *(_accuracy(rows, task) for task in tasks)]


def _perplexity(row: VariantRow) -> Estimate | None:
    """Relative to FP16, which itself changed by nothing."""
    own = row.metric("perplexity", "perplexity") if row.variant == REFERENCE else None
    return row.perplexity_change() or (Estimate(0.0) if own else None)


def _accuracy(rows: Sequence[VariantRow], task: str) -> Measure:
    """Accuracy with the error of its difference from FP16, which itself differs by nothing."""
    paired = any(row.metric(task, "accuracy_delta") for row in rows)
    guessed = any(row.at_chance(task) for row in rows)

    def accuracy(row: VariantRow) -> Estimate | None:
        own, change = (row.estimate(task, name, 100) for name in ("accuracy", "accuracy_delta"))
        return replace(change or Estimate(0.0), value=own.value) if own and paired else own

    of_what = "the paired difference from FP16" if paired else "each accuracy by itself"
    caption = f"Higher is better. Intervals of {of_what}."
    caption += " No better than guessing: differences mean nothing." * guessed
    name, title = task.replace("_", "-"), MMLU_TASKS[task]
    return Measure(name, title, "accuracy, %", accuracy, 1, caption, higher_is_better=True)


def speed(shown: ReportedRun) -> Section | None:
    """Decode speed; noise and throttling are said first."""
    rows = [row for row in shown.rows if row.metric("throughput", DECODE)]
    if not rows:
        return None
    parts: list[Part] = []
    if doubted := [row for row in rows if row.clock_doubt]:
        text = f"Unreliable speeds (~): {', '.join(row.variant for row in doubted)}. "
        text += f"{doubted[0].variant}: {doubted[0].clock_doubt}."
        parts.append(Paragraph(text, warning=True))
    caption = "Median tokens per second at batch size 1; higher is better."
    names = ("speed", "Decoding", "tokens/s")
    decoding = Measure(*names, lambda row: row.estimate("throughput", DECODE), 1, caption, True)
    parts += [plot for plot, _ in _plots(shown, "", decoding).values()]

    def cell(row: VariantRow, name: str, scale: float = 1.0, digits: int = 1) -> str:
        return figure_text(row.estimate("throughput", name, scale), digits)

    table = [
        {
            "Variant": row.variant,
            "Decode tok/s": tokens_per_s(row),
            "10th – 90th": " – ".join(cell(row, f"{DECODE}_{end}") for end in ("p10", "p90")),
            "Against FP16": cell(row, "decode_ratio", digits=2),
            "Prefill tok/s": cell(row, "prefill_tokens_per_s"),
            "TTFT ms": cell(row, "ttft_s", 1000),
        }
        for row in rows
    ]
    return Section("speed", "Speed against size", (*parts, Table.of(table)))
