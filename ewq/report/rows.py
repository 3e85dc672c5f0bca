"""One row per variant in the shape people know from EWQ: memory, speed, MMLU, perplexity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ewq.gating.doubts import at_chance, doubt_about
from ewq.gating.gates import overall
from ewq.measurement import Metric
from ewq.record import Record, Verdict
from ewq.variants import table_place


@dataclass(frozen=True)
class SizeUnit:
    """What sizes are given in, the same for all variants of a run."""

    name: str
    size_bytes: float

    def of(self, size_bytes: float) -> float:
        """A size in this unit."""
        return size_bytes / self.size_bytes

    def text(self, size_bytes: float) -> str:
        """Three digits, without the unit."""
        value = self.of(size_bytes)
        return f"{value:.{decimals_for(value)}f}"


GB, MB = SizeUnit("GB", 1e9), SizeUnit("MB", 1e6)
_LEAST_GB = 0.05
"""Where even the largest variant is smaller, sizes are in MB."""


@dataclass(frozen=True)
class VariantRow:
    """All records of one variant; figures that were not measured are ``None``."""

    variant: str
    records: Mapping[str, Record]
    """Task -> record."""

    def metric(self, task: str, name: str) -> Metric | None:
        """One figure, or ``None`` where it was not measured."""
        record = self.records.get(task)
        return record.metrics.get(name) if record else None

    @property
    def verdict(self) -> Verdict:
        """The gate's word over all tasks."""
        return overall(record.verdict for record in self.records.values())

    @property
    def at_chance(self) -> bool:
        """Whether the letter score of MMLU says nothing."""
        record = self.records.get("mmlu")
        return record is not None and at_chance(record)

    @property
    def clock_doubt(self) -> str:
        """Why its speed is not to be trusted; empty where nothing was noticed."""
        record = self.records.get("throughput")
        doubt = doubt_about("decode_tokens_per_s", record) if record else None
        return doubt.text if doubt else ""


def variant_rows(records: Iterable[Record]) -> list[VariantRow]:
    """Rows in the order of tables, whatever order a run measured or resumed its variants in."""
    grouped: dict[str, dict[str, Record]] = {}
    for record in records:
        grouped.setdefault(record.variant, {})[record.task] = record
    return [VariantRow(variant, grouped[variant]) for variant in sorted(grouped, key=table_place)]


ABSENT = "–"


def memory_metric(row: VariantRow) -> Metric | None:
    """Peak VRAM where there is a GPU, else what the weights weigh."""
    return row.metric("memory", "vram_peak_bytes") or row.metric("memory", "weights_bytes")


def memory(row: VariantRow, unit: SizeUnit) -> str:
    """The size that tables show, in ``unit``."""
    metric = memory_metric(row)
    return ABSENT if metric is None else unit.text(metric.value)


def size_unit(rows: Sequence[VariantRow]) -> SizeUnit:
    """GB, or MB for models so small that GB would be a row of zeros."""
    sizes = [metric.value for row in rows if (metric := memory_metric(row))]
    return MB if sizes and max(sizes) < _LEAST_GB * GB.size_bytes else GB


def bits_per_weight(row: VariantRow) -> str:
    """Bits per weight over the whole model, scales included."""
    metric = row.metric("memory", "bits_per_weight")
    return ABSENT if metric is None else f"{metric.value:.2f}"


def tokens_per_s(row: VariantRow) -> str:
    """Decode speed at batch size 1 with its standard error; a tilde where clocks are in doubt."""
    metric = row.metric("throughput", "decode_tokens_per_s")
    if metric is None:
        return ABSENT
    doubt = "~" * bool(row.clock_doubt)
    return doubt + with_error(metric.value, metric.stderr, decimals_for(metric.value))


def mmlu_percent(row: VariantRow) -> str:
    """Accuracy with its standard error; a star where it is chance."""
    metric = row.metric("mmlu", "accuracy")
    if metric is None:
        return ABSENT
    return with_error(100 * metric.value, _scaled(metric.stderr, 100), 1) + "*" * row.at_chance


def perplexity(row: VariantRow) -> str:
    """Overall perplexity with its standard error."""
    metric = row.metric("perplexity", "perplexity")
    return ABSENT if metric is None else with_error(metric.value, metric.stderr, 2)


def perplexity_change_percent(row: VariantRow) -> str:
    """``100 * (exp(ln PPL ratio) - 1)`` against FP16 on the same tokens, paired error."""
    metric = row.metric("perplexity", "ln_ppl_ratio")
    if metric is None:
        return ABSENT
    ratio = math.exp(metric.value)
    return with_error(100 * (ratio - 1), _scaled(metric.stderr, 100 * ratio), 2, signed=True)


def mmlu_change_points(row: VariantRow) -> str:
    """Change of MMLU in percentage points, paired error."""
    metric = row.metric("mmlu", "accuracy_delta")
    if metric is None:
        return ABSENT
    return with_error(100 * metric.value, _scaled(metric.stderr, 100), 1, signed=True)


def kld_millinats(row: VariantRow) -> str:
    """Mean KLD from FP16 in thousandths of a nat."""
    metric = row.metric("divergence", "kld_mean")
    if metric is None:
        return ABSENT
    return with_error(1000 * metric.value, _scaled(metric.stderr, 1000), 2)


def with_error(value: float, stderr: float | None, digits: int, *, signed: bool = False) -> str:
    """``12.34 ±0.05``; the error is left out where it is unknown."""
    value = round(value, digits) + 0.0  # no "-0.00"
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text if stderr is None else f"{text} ±{stderr:.{digits}f}"


def decimals_for(value: float) -> int:
    """Decimal places that leave three digits."""
    return max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0


def _scaled(stderr: float | None, factor: float) -> float | None:
    return None if stderr is None else stderr * factor
