"""What each variant lost against FP16, and whether that is within a margin.

Every statement is a one-sided test at :data:`ewq.stats.ALPHA`, shared among all variants that the
same statement is asked of (Bonferroni), so that a page with twelve variants is no likelier to be
wrong than one with two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice

from ewq.measurement import Metric
from ewq.report.estimate import Estimate
from ewq.report.rows import VariantRow

MMLU_TASKS = {"mmlu": "MMLU", "mmlu_cloze": "MMLU (cloze)"}


class Standing(Enum):
    """Where a loss is shown to lie with respect to a margin, if it is."""

    WITHIN = auto()
    BEYOND = auto()
    OPEN = auto()


@dataclass(frozen=True)
class Loss:
    """How much worse than the reference a variant is, on the same items."""

    measure: str
    """``perplexity``, or a form of MMLU."""
    metric: Metric
    """Paired: nats for perplexity (a logarithm of a ratio), a fraction for accuracy."""

    @property
    def is_perplexity(self) -> bool:
        """Whether this is the more sensitive of the two measures."""
        return self.measure == "perplexity"

    @property
    def unit(self) -> str:
        """Of the change: ``%`` or ``points``."""
        return "%" if self.is_perplexity else "points"

    @property
    def change(self) -> Estimate:
        """In percent or points, with the sign that people know."""
        metric = self.metric
        return Estimate.percent_change(metric) if self.is_perplexity else Estimate.of(metric, 100)

    @property
    def phrase(self) -> str:
        """``perplexity +0.43 ±0.11 %``."""
        digits = 2 if self.is_perplexity else 1
        return f"{self.measure} {self.change.text(digits, signed=True)} {self.unit}"

    @property
    def interval(self) -> tuple[float, ...]:
        """95 % bounds of the change; empty where not stored."""
        return tuple(self._shown(bound) for bound in self.metric.interval or ())

    @property
    def detectable(self) -> str:
        """The smallest loss that this comparison would have found with 80 % power at 5 %."""
        from ewq.stats import fewest_flips, smallest_detectable_difference

        found = smallest_detectable_difference(self._stderr, df=self.metric.freedom)
        # No error, however small, makes fewer flips than these detectable.
        least = 0.0 if self.is_perplexity else fewest_flips() / self.metric.n
        return f"{self._shown(max(found, least)):.2g} {self.unit}"

    def standing(self, margin: float, alpha: float) -> Standing:
        """Test the loss against a margin in the metric's unit, once from each side."""
        from ewq.stats import noninferiority

        loss, freedom = self.metric.value * (1 if self.is_perplexity else -1), self.metric.freedom
        if noninferiority(-loss, self._stderr, margin, freedom) < alpha:
            return Standing.WITHIN
        beyond = noninferiority(loss - margin, self._stderr, 0.0, freedom) < alpha
        return Standing.BEYOND if beyond else Standing.OPEN

    @property
    def _stderr(self) -> float:
        assert self.metric.stderr is not None
        return self.metric.stderr

    def _shown(self, value: float) -> float:
        return 100 * (math.expm1(value) if self.is_perplexity else value)


def losses(row: VariantRow) -> tuple[Loss, ...]:
    """What was measured of perplexity and MMLU, the more sensitive first.

    Of MMLU the letters, or the cloze form where the letters' score is chance.
    """
    texts = [("perplexity", row.metric("perplexity", "ln_ppl_ratio"))]
    questions = [
        (measure, row.metric(task, "accuracy_delta"))
        for task, measure in MMLU_TASKS.items()
        if not row.at_chance(task)
    ]
    found = []
    for metrics in (texts, questions):
        known = (Loss(name, it) for name, it in metrics if it and it.stderr is not None)
        found += [*islice(known, 1)]
    return tuple(found)
