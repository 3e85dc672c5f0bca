"""One row per variant in the shape people know from EWQ: memory, speed, MMLU, perplexity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ewq.gating.gates import overall
from ewq.measurement import Metric
from ewq.record import Record, Verdict

GB = 1e9


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
        return record is not None and any("chance" in note for note in record.notes)


def variant_rows(records: Iterable[Record]) -> list[VariantRow]:
    """Rows in the order in which variants first appear."""
    grouped: dict[str, dict[str, Record]] = {}
    for record in records:
        grouped.setdefault(record.variant, {})[record.task] = record
    return [VariantRow(variant, tasks) for variant, tasks in grouped.items()]


ABSENT = "–"


def memory_gb(row: VariantRow) -> str:
    """Peak VRAM where there is a GPU, else what the weights weigh."""
    metric = row.metric("memory", "vram_peak_bytes") or row.metric("memory", "weights_bytes")
    return ABSENT if metric is None else f"{metric.value / GB:.3g}"


def bits_per_weight(row: VariantRow) -> str:
    """Bits per weight over the whole model, scales included."""
    metric = row.metric("memory", "bits_per_weight")
    return ABSENT if metric is None else f"{metric.value:.2f}"


def tokens_per_s(row: VariantRow) -> str:
    """Decode speed at batch size 1 with its standard error, to three digits."""
    metric = row.metric("throughput", "decode_tokens_per_s")
    if metric is None:
        return ABSENT
    decimals = max(0, 2 - math.floor(math.log10(metric.value))) if metric.value > 0 else 0
    return with_error(metric.value, metric.stderr, decimals)


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
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text if stderr is None else f"{text} ±{stderr:.{digits}f}"


def _scaled(stderr: float | None, factor: float) -> float | None:
    return None if stderr is None else stderr * factor
