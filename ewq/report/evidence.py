"""What the measurements of a run prove about its variants, and what they leave open.

Every statement is a one-sided test at :data:`ewq.stats.ALPHA`, shared among
all variants that the same statement is asked of (Bonferroni), so that a page
with twelve variants is no likelier to be wrong than one with two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from ewq.gating import doubts
from ewq.gating.change import incomparable
from ewq.gating.pairing import paired_changes
from ewq.measurement import Metric
from ewq.record import Record
from ewq.report.rows import VariantRow, with_error

PERPLEXITY = "perplexity"


class Standing(Enum):
    """Where a loss lies with respect to a margin."""

    WITHIN = "shown to be within"
    BEYOND = "shown to be beyond"
    OPEN = "neither shown to be within nor beyond"


@dataclass(frozen=True)
class Loss:
    """How much worse than the reference a variant is, paired; positive is worse."""

    measure: str
    value: float
    """Nats for perplexity (a logarithm of a ratio), a fraction for accuracy."""
    stderr: float
    freedom: int | None
    """Degrees of freedom of ``stderr``; ``None`` for the normal distribution."""
    words: str
    """The change in the unit and with the sign that people know."""
    interval: tuple[float, float] | None
    """95 % bounds of the change in the unit of :attr:`words`; ``None`` where not stored."""
    unit: str
    """``%`` or ``points``."""
    least: float = 0.0
    """What no error, however small, makes detectable: six flips one way."""

    @property
    def rank(self) -> int:
        """How sensitive the measure is; the lowest rank decides."""
        return 0 if self.measure == "perplexity" else 1

    @property
    def told_from_zero(self) -> bool:
        """Whether the change is told from none at two-sided 5 %."""
        from ewq.stats import half_width

        return abs(self.value) > half_width(self.stderr, self.freedom)

    def standing(self, margin: float, alpha: float) -> Standing:
        """Test the loss against ``margin``, once from each side."""
        from ewq.stats import noninferiority

        if noninferiority(-self.value, self.stderr, margin, alpha, self.freedom).holds:
            return Standing.WITHIN
        beyond = noninferiority(self.value - margin, self.stderr, 0.0, alpha, self.freedom).holds
        return Standing.BEYOND if beyond else Standing.OPEN

    def detectable(self) -> float:
        """The loss that this comparison would have found with 80 % power at 5 %."""
        from ewq.stats import smallest_detectable_difference

        detectable = smallest_detectable_difference(self.stderr, df=self.freedom)
        return max(detectable, self.least)

    def detectable_words(self) -> str:
        """:meth:`detectable` in the unit of :attr:`words`."""
        found = self.detectable()
        in_unit = 100 * (math.expm1(found) if self.measure == PERPLEXITY else found)
        return f"{in_unit:.2g} {self.unit}"


def perplexity_loss(row: VariantRow) -> Loss | None:
    """``ln(PPL / PPL of the reference)``; ``None`` where it or its error was not measured."""
    metric = row.metric("perplexity", "ln_ppl_ratio")
    if metric is None or metric.stderr is None:
        return None
    percent, error = 100 * math.expm1(metric.value), 100 * math.exp(metric.value) * metric.stderr
    words = f"perplexity {with_error(percent, error, 2, signed=True)} %"
    freedom = metric.freedom or _text_freedom(row.records["perplexity"])
    bounds = _bounds(metric, lambda nats: 100 * math.expm1(nats))
    return Loss(PERPLEXITY, metric.value, metric.stderr, freedom, words, bounds, "%")


def mmlu_loss(row: VariantRow) -> Loss | None:
    """Accuracy lost, as a fraction; in cloze form where the letters' score is chance.

    ``None`` where unmeasured, or where both forms are at chance level and prove nothing.
    """
    from ewq.stats import fewest_flips

    asked = [task for task in MMLU_TASKS if row.metric(task, "accuracy_delta")]
    task = next((task for task in asked if not at_chance(row, task)), None)
    metric = row.metric(task, "accuracy_delta") if task else None
    if task is None or metric is None or metric.stderr is None:
        return None
    name = MMLU_TASKS[task]
    words = f"{name} {with_error(100 * metric.value, 100 * metric.stderr, 1, signed=True)} points"
    freedom = metric.freedom or _subject_freedom(row.records[task])
    bounds, least = _bounds(metric, lambda share: 100 * share), fewest_flips() / metric.n
    return Loss(name, -metric.value, metric.stderr, freedom, words, bounds, "points", least)


def _bounds(metric: Metric, in_unit: Callable[[float], float]) -> tuple[float, float] | None:
    if metric.interval is None:
        return None
    low, high = metric.interval
    return in_unit(low), in_unit(high)


MMLU_TASKS = {"mmlu": "MMLU", "mmlu_cloze": "MMLU (cloze)"}


def at_chance(row: VariantRow, task: str) -> bool:
    """Whether the accuracy of one of the MMLU tasks cannot be told from guessing."""
    record = row.records.get(task)
    return record is not None and doubts.at_chance(record)


@dataclass(frozen=True)
class Contrast:
    """Two variants of one run compared on the same texts."""

    better: str
    """The variant with the lower value."""
    worse: str
    relative: float
    """How much higher the worse one's value is, as a share of the better one's."""
    stderr: float | None
    """Standard error of ``relative``."""
    p_value: float | None
    """Two-sided p of "no difference"."""

    def decided(self, alpha: float) -> bool:
        """Whether the direction is certain at one-sided ``alpha``."""
        return self.p_value is not None and self.p_value / 2 < alpha


def contrast(one: VariantRow, other: VariantRow) -> Contrast | None:
    """Compare two variants' perplexities item by item; ``None`` where they cannot be paired."""
    records = [row.records.get("perplexity") for row in (one, other)]
    first, second = records
    if first is None or second is None or incomparable(first, second):
        return None
    change = paired_changes(first, second).get("perplexity")
    values = first.metrics.get("perplexity"), second.metrics.get("perplexity")
    if change is None or values[0] is None or values[1] is None:
        return None
    (low, better), (high, worse) = sorted(
        ((values[0].value, one.variant), (values[1].value, other.variant))
    )
    stderr = None if change.stderr is None else change.stderr / low
    return Contrast(better, worse, high / low - 1, stderr, change.p_value)


def weights_bytes(row: VariantRow) -> float | None:
    """What the variant's weights weigh, scales included."""
    metric = row.metric("memory", "weights_bytes")
    return None if metric is None else metric.value


LOSSES: tuple[Callable[[VariantRow], Loss | None], ...] = (perplexity_loss, mmlu_loss)


def _subject_freedom(record: Record) -> int | None:
    """Subjects minus one, for records from before metrics carried their degrees of freedom."""
    subjects = record.settings.get("subjects")
    count = len(subjects) if isinstance(subjects, list) else 0
    return count - 1 if count > 2 else None


def _text_freedom(record: Record) -> int | None:
    """Clusters minus one, for records from before metrics carried their degrees of freedom.

    ``None`` where no items are stored.
    """
    from ewq.stats import clusters_of

    if not len(record.items):
        return None
    documents = record.items.column("document")
    clusters = clusters_of(documents)
    return max(1, (len(documents) if clusters is None else len(set(clusters))) - 1)
