"""What each variant lost against FP16, and whether that is within a margin.

Every statement is a one-sided test at :data:`ewq.stats.ALPHA`, shared among all variants that the
same statement is asked of (Bonferroni), so that a page with twelve variants is no likelier to be
wrong than one with two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from ewq.measurement import Metric
from ewq.report.estimate import Estimate
from ewq.report.rows import VariantRow

PERPLEXITY = "perplexity"
MMLU_TASKS = {"mmlu": "MMLU", "mmlu_cloze": "MMLU (cloze)"}


class Standing(Enum):
    """Where a loss lies with respect to a margin."""

    WITHIN = "shown to be within"
    BEYOND = "shown to be beyond"
    OPEN = "neither shown to be within nor beyond"


@dataclass(frozen=True)
class Loss:
    """How much worse than the reference a variant is, on the same items."""

    measure: str
    """``perplexity``, or a form of MMLU."""
    value: float
    """Nats for perplexity (a logarithm of a ratio), a fraction for accuracy; positive is worse."""
    stderr: float
    freedom: int | None
    """Degrees of freedom of ``stderr``; ``None`` for the normal distribution."""
    change: Estimate
    """The same in percent or points, with the sign that people know."""
    interval: tuple[float, float] | None
    """95 % bounds of ``change``; ``None`` where not stored."""
    least: float = 0.0
    """What no error, however small, makes detectable: six flips one way."""

    @property
    def is_perplexity(self) -> bool:
        """Whether this is the more sensitive of the two measures."""
        return self.measure == PERPLEXITY

    @property
    def unit(self) -> str:
        """``%`` or ``points``."""
        return "%" if self.is_perplexity else "points"

    @property
    def phrase(self) -> str:
        """``perplexity +0.43 ±0.11 %``."""
        digits = 2 if self.is_perplexity else 1
        return f"{self.measure} {self.change.text(digits, signed=True)} {self.unit}"

    @property
    def differs_from_zero(self) -> bool:
        """Whether there is a change at all, at two-sided 5 %."""
        return Estimate(self.value, self.stderr, self.freedom).differs_from_zero

    def standing(self, margin: float, alpha: float) -> Standing:
        """Test the loss against ``margin``, once from each side."""
        from ewq.stats import noninferiority

        if noninferiority(-self.value, self.stderr, margin, self.freedom) < alpha:
            return Standing.WITHIN
        beyond = noninferiority(self.value - margin, self.stderr, 0.0, self.freedom) < alpha
        return Standing.BEYOND if beyond else Standing.OPEN

    @property
    def detectable(self) -> str:
        """The smallest loss that this comparison would have found with 80 % power at 5 %."""
        from ewq.stats import smallest_detectable_difference

        found = max(smallest_detectable_difference(self.stderr, df=self.freedom), self.least)
        return f"{100 * (math.expm1(found) if self.is_perplexity else found):.2g} {self.unit}"


def losses(row: VariantRow) -> tuple[Loss, ...]:
    """What was measured of perplexity and MMLU, the more sensitive first."""
    return tuple(loss for loss in (_perplexity_loss(row), _mmlu_loss(row)) if loss is not None)


def _perplexity_loss(row: VariantRow) -> Loss | None:
    metric = row.metric("perplexity", "ln_ppl_ratio")
    if metric is None or metric.stderr is None:
        return None
    bounds = metric.interval and tuple(100 * math.expm1(nats) for nats in metric.interval)
    return _loss(PERPLEXITY, metric, 1, Estimate.percent_change(metric), bounds)


def _mmlu_loss(row: VariantRow) -> Loss | None:
    """In cloze form where the letters' score is chance; ``None`` where both forms guess."""
    from ewq.stats import fewest_flips

    for task, measure in MMLU_TASKS.items():
        metric = row.metric(task, "accuracy_delta")
        if metric is not None and metric.stderr is not None and not row.at_chance(task):
            bounds = metric.interval and tuple(100 * share for share in metric.interval)
            least = fewest_flips() / metric.n
            return _loss(measure, metric, -1, Estimate.from_metric(metric, 100), bounds, least)
    return None


def _loss(
    measure: str,
    metric: Metric,
    sign: int,
    change: Estimate,
    bounds: tuple[float, ...] | None,
    least: float = 0.0,
) -> Loss:
    assert metric.stderr is not None
    interval = (bounds[0], bounds[1]) if bounds else None
    return Loss(
        measure, sign * metric.value, metric.stderr, metric.freedom, change, interval, least
    )
