"""Decode speed against size."""

from __future__ import annotations

from typing import Any

from ewq.report import kinds
from ewq.report.document import Label, Paragraph, Plot, Section, Table
from ewq.report.drawing import layout, marks, padded
from ewq.report.escaping import plot_text
from ewq.report.evidence import weights_bytes
from ewq.report.kinds import kind_of
from ewq.report.rows import ABSENT, SizeUnit, VariantRow, decimals_for, tokens_per_s, with_error
from ewq.report.subject import Reported

DECODE, PREFILL, TTFT = "decode_tokens_per_s", "prefill_tokens_per_s", "ttft_s"


def section(subject: Reported) -> Section | None:
    """One plot with the spread over rounds; noise and throttling are told."""
    rows = [row for row in subject.rows if row.metric("throughput", DECODE)]
    if not rows:
        return None
    sized = [row for row in rows if weights_bytes(row)]
    said = tuple(Paragraph(text, warning=True) for text in _doubts(rows))
    table = _table(rows)
    if not sized:
        return Section("speed", "Speed", (*said, table))
    plot = Plot(
        name="speed",
        title="Decoding against size",
        caption="Tokens per second at batch size 1; higher is better. Bars: 10th to 90th "
        "percentile of the rounds.",
        figure=_figure(sized, subject.unit),
        table=table,
        labels=tuple(
            Label(
                _size(row, subject.unit),
                _speed(row, ""),
                plot_text(row.variant),
                _speed(row, "_p10"),
                _speed(row, "_p90"),
            )
            for row in sized
        ),
    )
    return Section("speed", "Speed against size", (*said, plot))


def _doubts(rows: list[VariantRow]) -> list[str]:
    """One sentence for all variants whose clocks are in doubt, with the reason of the first."""
    doubted = [row for row in rows if row.clock_doubt]
    if not doubted:
        return []
    who = ", ".join(row.variant for row in doubted)
    return [
        f"Rough figures (~): the clocks of {who} are in doubt, for example {doubted[0].variant}: "
        f"{doubted[0].clock_doubt}. Verdicts lists them all."
    ]


def _size(row: VariantRow, unit: SizeUnit) -> float:
    return unit.of(weights_bytes(row) or 0.0)


def _speed(row: VariantRow, suffix: str) -> float:
    """The median, or a percentile; the median again where percentiles are missing."""
    metric = row.metric("throughput", DECODE + suffix) or row.metric("throughput", DECODE)
    return metric.value if metric else 0.0


def _figure(rows: list[VariantRow], unit: SizeUnit) -> dict[str, Any]:
    traces = []
    for kind in kinds.KINDS:
        own = [row for row in rows if kind_of(row.variant) is kind]
        if own:
            traces.append(_trace(own, kind, unit))
    ends = [_speed(row, suffix) for row in rows for suffix in ("_p10", "_p90")]
    frame = layout(
        f"weights, {unit.name}",
        "tokens/s",
        xaxis={"range": padded([_size(row, unit) for row in rows], 0.12)},
        yaxis={"range": padded([0.0, *ends])},
    )
    return {"data": traces, "layout": frame}


def _trace(rows: list[VariantRow], kind: kinds.Kind, unit: SizeUnit) -> dict[str, Any]:
    middle = [_speed(row, "") for row in rows]
    spread = {
        "symmetric": False,
        "array": [_speed(row, "_p90") - m for row, m in zip(rows, middle, strict=True)],
        "arrayminus": [m - _speed(row, "_p10") for row, m in zip(rows, middle, strict=True)],
    }
    trace = marks(
        kind, [row.variant for row in rows], [_size(row, unit) for row in rows], middle, spread
    )
    figures = f"%{{x:.3g}} {unit.name}<br>%{{y:.4g}} tokens/s"
    return {**trace, "hovertemplate": f"%{{text}}<br>{figures}<extra></extra>"}


def _table(rows: list[VariantRow]) -> Table:
    headings = (
        "Variant",
        "Decode tok/s",
        "10th – 90th",
        "Against FP16",
        "Prefill tok/s",
        "TTFT ms",
    )
    cells = tuple(
        (
            row.variant,
            tokens_per_s(row),
            _range(row),
            _cell(row, "decode_ratio", 1.0, digits=2),
            _cell(row, PREFILL, 1.0),
            _cell(row, TTFT, 1000.0),
        )
        for row in rows
    )
    return Table(headings, cells)


def _range(row: VariantRow) -> str:
    low, high = _speed(row, "_p10"), _speed(row, "_p90")
    return " – ".join(f"{value:.{decimals_for(low)}f}" for value in (low, high))


def _cell(row: VariantRow, name: str, scale: float, digits: int = 1) -> str:
    metric = row.metric("throughput", name)
    if metric is None:
        return ABSENT
    error = None if metric.stderr is None else scale * metric.stderr
    return with_error(scale * metric.value, error, digits)
