"""Plans against what they have to beat: uniform controls, and random plans of the same size.

A uniform control differs in size, so it can only win or lose in both size and quality. Random
allocations of the same bytes ask something else: did the scorer choose better than chance?
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ewq.gating.change import incomparable, paired_changes
from ewq.report.estimate import Estimate
from ewq.report.plotting import variant_kind
from ewq.report.rows import VariantRow
from ewq.stats import ALPHA
from ewq.variants import engine_of

SAME_SIZE = 0.005
"""Largest relative difference in bytes of plans that count as equally large."""
RANDOM = "random"
"""The scorer that looks at nothing."""


@dataclass(frozen=True)
class ControlComparison:
    """One plan against one uniform control on the same texts."""

    plan: str
    control: str
    size_percent: float
    """By how much the plan is larger than the control."""
    perplexity: Estimate
    """By how much the plan's perplexity is higher than the control's, in percent, paired."""
    certain: bool
    """Whether it is certain which of them has the lower perplexity."""

    @property
    def plan_wins(self) -> bool:
        """The plan is no larger and certainly better."""
        return self.certain and self.perplexity.value < 0 and self.size_percent <= 0

    @property
    def control_wins(self) -> bool:
        """The control is no larger and certainly better."""
        return self.certain and self.perplexity.value > 0 and self.size_percent >= 0

    @property
    def outcome(self) -> str:
        """The result in words."""
        if self.plan_wins:
            return "plan smaller and better"
        if self.control_wins:
            return "control smaller and better"
        return "size against quality" if self.certain else "perplexity undecided"


def compare_with_controls(rows: Sequence[VariantRow]) -> list[ControlComparison]:
    """All pairs of one engine that share their texts and whose sizes are known."""
    pairs = [
        (plan, control)
        for plan in rows
        if variant_kind(plan.variant).planned and scorer(plan) != RANDOM
        for control in rows
        if variant_kind(control.variant).control
        and engine_of(control.variant) == engine_of(plan.variant)
    ]
    found = (_compare(plan, control, ALPHA / len(pairs)) for plan, control in pairs)
    return [comparison for comparison in found if comparison is not None]


def _compare(plan: VariantRow, control: VariantRow, alpha: float) -> ControlComparison | None:
    """``None`` where perplexities cannot be paired or a size is unknown."""
    old, new = (row.records.get("perplexity") for row in (control, plan))
    if old is None or new is None or not plan.weights_bytes or not control.weights_bytes:
        return None
    change = None if incomparable(old, new) else paired_changes(old, new).get("perplexity")
    if change is None:
        return None
    base, planned = old.metrics["perplexity"].value, new.metrics["perplexity"].value
    percent = 100 / base
    return ControlComparison(
        plan.variant,
        control.variant,
        100 * (plan.weights_bytes / control.weights_bytes - 1),
        Estimate(percent * (planned - base), percent * change.stderr),
        change.p_value / 2 < alpha,
    )


@dataclass(frozen=True)
class RandomRanking:
    """One plan among random plans of its size and engine."""

    plan: str
    kld_nats: float
    random_klds_nats: tuple[float, ...]
    """Of the random plans, ascending."""

    @property
    def beaten(self) -> int:
        """Random plans that diverge more from the reference than the plan."""
        return sum(kld > self.kld_nats for kld in self.random_klds_nats)

    @property
    def p_better(self) -> float:
        """Chance that a random plan's rank is as good: a permutation test, never 0."""
        return self._share(sum(kld <= self.kld_nats for kld in self.random_klds_nats))

    @property
    def p_worse(self) -> float:
        """Chance that a random plan's rank is as bad."""
        return self._share(sum(kld >= self.kld_nats for kld in self.random_klds_nats))

    def _share(self, as_extreme: int) -> float:
        return (1 + as_extreme) / (1 + len(self.random_klds_nats))

    @property
    def outcome(self) -> str:
        """The result in words; where nothing may be said, how many random plans it would take."""
        if self.p_better <= ALPHA:
            return "better than chance"
        if self.p_worse <= ALPHA:
            return "worse than chance"
        needed = math.ceil(1 / ALPHA) - 1
        if len(self.random_klds_nats) < needed:
            return f"undecided: needs {needed} random plans"
        return "no different from chance"

    @property
    def median_kld_nats(self) -> float:
        """Of the random plans."""
        return median(self.random_klds_nats)


def rank_among_random(rows: Sequence[VariantRow]) -> list[RandomRanking]:
    """Every scored plan of which the run holds random plans of the same size."""
    random_rows = [row for row in rows if scorer(row) == RANDOM]
    found = []
    for row in rows:
        kld = _kld(row)
        if kld is None or scorer(row) in (None, RANDOM):
            continue
        klds = [_kld(rival) for rival in random_rows if _same_size(rival, row)]
        known = sorted(value for value in klds if value is not None)
        if known:
            found.append(RandomRanking(row.variant, kld, tuple(known)))
    return found


def scorer(row: VariantRow) -> str | None:
    """The scorer of the plan that a variant was made by; ``None`` without a plan."""
    return None if row.plan is None else str(row.plan.get("scorer"))


def _same_size(one: VariantRow, other: VariantRow) -> bool:
    if not one.weights_bytes or not other.weights_bytes:
        return False
    if engine_of(one.variant) != engine_of(other.variant):
        return False
    return abs(one.weights_bytes / other.weights_bytes - 1) <= SAME_SIZE


def _kld(row: VariantRow) -> float | None:
    metric = row.metric("divergence", "kld_mean")
    return None if metric is None else metric.value
