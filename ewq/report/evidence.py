"""What a run's statistics say: losses against FP16, and plans against what they have to beat.

Every statement is a one-sided test at :data:`ewq.stats.ALPHA`, shared among all variants that it is
asked of (Bonferroni).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ewq.gating.change import incomparable, paired_changes
from ewq.measurement import Metric
from ewq.record import Verdict
from ewq.report.rows import MMLU_TASKS, Estimate, VariantRow
from ewq.stats import ALPHA, FEWEST_FLIPS, noninferiority, smallest_detectable_difference
from ewq.variants import engine_of

_SAME_SIZE = 0.005
RANDOM = "random"


@dataclass(frozen=True)
class Loss:
    """How much worse than the reference a variant is, on the same items."""

    measure: str
    """``perplexity``, or a form of MMLU."""
    metric: Metric
    """Paired: nats for perplexity (a logarithm of a ratio), a fraction for accuracy."""
    stderr: float

    @property
    def is_perplexity(self) -> bool:
        """Whether this is the more sensitive of the two measures."""
        return self.measure == "perplexity"

    @property
    def worse(self) -> float:
        """How much is lost, in the metric's unit."""
        return self.metric.value * (1 if self.is_perplexity else -1)

    @property
    def unit(self) -> str:
        """Of the change: ``%`` or ``points``."""
        return "%" if self.is_perplexity else "points"

    @property
    def phrase(self) -> str:
        """``perplexity +0.43 ±0.11 %``, with the sign that people know."""
        percent = Estimate.percent_change if self.is_perplexity else partial(Estimate.of, scale=100)
        change = percent(self.metric).text(1 + self.is_perplexity, signed=True)
        return f"{self.measure} {change} {self.unit}"

    @property
    def interval(self) -> str:
        """``+0.21 to +0.65 %``: 95 % bounds of the change; empty where not stored."""
        bounds = [f"{self._shown(bound):+.2f}" for bound in self.metric.interval or ()]
        return f"{' to '.join(bounds)} {self.unit}" if bounds else ""

    @property
    def detectable(self) -> str:
        """The smallest loss that this comparison would have found with 80 % power at 5 %."""
        found = smallest_detectable_difference(self.stderr, df=self.metric.freedom)
        # No error, however small, makes fewer flips than these detectable.
        least = 0.0 if self.is_perplexity else FEWEST_FLIPS / self.metric.n
        return f"{self._shown(max(found, least)):.2g} {self.unit}"

    def verdict(self, margin: float, alpha: float) -> Verdict:
        """Is it shown to be within a margin in the metric's unit, or beyond it?"""
        loss, freedom = self.worse, self.metric.freedom
        if noninferiority(-loss, self.stderr, margin, freedom) < alpha:
            return Verdict.PASS
        beyond = noninferiority(loss - margin, self.stderr, 0.0, freedom) < alpha
        return Verdict.FAIL if beyond else Verdict.INCONCLUSIVE

    def _shown(self, value: float) -> float:
        return 100 * (math.expm1(value) if self.is_perplexity else value)


def losses(row: VariantRow) -> tuple[Loss, ...]:
    """What was measured of perplexity, then of MMLU: its cloze form where letters are chance."""
    tasks = [task for task in MMLU_TASKS if not row.at_chance(task)]
    accuracies = [(MMLU_TASKS[task], row.metric(task, "accuracy_delta")) for task in tasks]
    found = [("perplexity", row.metric("perplexity", "ln_ppl_ratio")), *accuracies]
    known = [Loss(name, it, it.stderr) for name, it in found if it and it.stderr is not None]
    return tuple(known[: 1 + any(loss.is_perplexity for loss in known)])


@dataclass(frozen=True)
class ControlComparison:
    """One plan against one uniform control of the same engine, on the same texts."""

    plan: str
    control: str
    size_percent: float
    perplexity: Estimate
    """By how much the plan's perplexity is higher than the control's, in percent, paired."""
    certain: bool

    @property
    def outcome(self) -> str:
        """Which is no larger and certainly better, if one is."""
        if not self.certain:
            return "perplexity undecided"
        better = "plan" if self.perplexity.value < 0 else "control"
        larger = self.size_percent > 0 if better == "plan" else self.size_percent < 0
        return "size against quality" if larger else f"{better} no larger and better"


def compare_with_controls(rows: Sequence[VariantRow]) -> list[ControlComparison]:
    """All pairs of one engine that share their texts and whose sizes are known."""
    pairs = [
        (plan, control)
        for plan in rows
        if plan.kind.planned and scorer(plan) != RANDOM
        for control in rows
        if control.kind.control and engine_of(control.variant) == engine_of(plan.variant)
    ]
    found = (_compare(plan, control, ALPHA / len(pairs)) for plan, control in pairs)
    return [comparison for comparison in found if comparison is not None]


def _compare(plan: VariantRow, control: VariantRow, alpha: float) -> ControlComparison | None:
    """``None`` where perplexities cannot be paired or a size is unknown."""
    old, new = (row.records.get("perplexity") for row in (control, plan))
    if not (old and new and plan.weights_bytes and control.weights_bytes):
        return None
    change = paired_changes(old, new).get("perplexity")
    if change is None or incomparable(old, new):
        return None
    base, planned = old.metrics["perplexity"].value, new.metrics["perplexity"].value
    return ControlComparison(
        plan.variant,
        control.variant,
        100 * (plan.weights_bytes / control.weights_bytes - 1),
        Estimate(100 / base * (planned - base), 100 / base * change.stderr),
        change.p_value / 2 < alpha,
    )


@dataclass(frozen=True)
class RandomRanking:
    """One plan among random plans of its size and engine; its chances are a permutation test's."""

    plan: str
    kld_nats: float
    random_klds_nats: tuple[float, ...]
    """Of the random plans, ascending."""

    @property
    def beaten(self) -> int:
        """Random plans that diverge more from the reference than the plan."""
        return sum(kld > self.kld_nats for kld in self.random_klds_nats)

    @property
    def p_values(self) -> tuple[float, float]:
        """Chances that a random plan's rank is as good, and as bad; never 0."""
        random = self.random_klds_nats
        as_good = sum(kld <= self.kld_nats for kld in random)
        as_bad = sum(kld >= self.kld_nats for kld in random)
        return (1 + as_good) / (1 + len(random)), (1 + as_bad) / (1 + len(random))

    @property
    def outcome(self) -> str:
        """The result in words; where nothing may be said, how many random plans it would take."""
        needed = math.ceil(1 / ALPHA) - 1
        if len(self.random_klds_nats) < needed:
            return f"undecided: needs {needed} random plans"
        better, worse = (p_value <= ALPHA for p_value in self.p_values)
        how = "better than" if better else "worse than" if worse else "no different from"
        return f"{how} chance"


def rank_among_random(rows: Sequence[VariantRow]) -> list[RandomRanking]:
    """Every scored plan of which the run holds random plans of the same size."""
    klds = [(row, row.value("divergence", "kld_mean")) for row in rows]
    random = [(row, kld) for row, kld in klds if kld is not None and scorer(row) == RANDOM]
    found = []
    for row, kld in klds:
        rivals = sorted(other for rival, other in random if _same_size(rival, row))
        if kld is not None and rivals and scorer(row) not in (None, RANDOM):
            found.append(RandomRanking(row.variant, kld, tuple(rivals)))
    return found


def scorer(row: VariantRow) -> str | None:
    """The scorer of the plan that a variant was made by; ``None`` without a plan."""
    return None if row.plan is None else str(row.plan.get("scorer"))


def _same_size(one: VariantRow, other: VariantRow) -> bool:
    if not one.weights_bytes or not other.weights_bytes:
        return False
    same_engine = engine_of(one.variant) == engine_of(other.variant)
    return same_engine and abs(one.weights_bytes / other.weights_bytes - 1) <= _SAME_SIZE
