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
    def winner(self) -> str | None:
        """The one that is no larger and certainly better."""
        if self.certain and self.perplexity.value < 0 and self.size_percent <= 0:
            return self.plan
        if self.certain and self.perplexity.value > 0 and self.size_percent >= 0:
            return self.control
        return None

    @property
    def outcome(self) -> str:
        """The result in words."""
        if self.winner:
            return f"{'plan' if self.winner == self.plan else 'control'} smaller and better"
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
    if not (old and new and plan.weights_bytes and control.weights_bytes):
        return None
    change = None if incomparable(old, new) else paired_changes(old, new).get("perplexity")
    if change is None:
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
        random = self.random_klds_nats
        return (1 + sum(kld <= self.kld_nats for kld in random)) / (1 + len(random))

    @property
    def p_worse(self) -> float:
        """Chance that a random plan's rank is as bad."""
        random = self.random_klds_nats
        return (1 + sum(kld >= self.kld_nats for kld in random)) / (1 + len(random))

    @property
    def outcome(self) -> str:
        """The result in words; where nothing may be said, how many random plans it would take."""
        if self.p_better <= ALPHA:
            return "better than chance"
        if self.p_worse <= ALPHA:
            return "worse than chance"
        needed = math.ceil(1 / ALPHA) - 1
        enough = len(self.random_klds_nats) >= needed
        return "no different from chance" if enough else f"undecided: needs {needed} random plans"

    @property
    def median_kld_nats(self) -> float:
        """Of the random plans."""
        return median(self.random_klds_nats)


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
    return same_engine and abs(one.weights_bytes / other.weights_bytes - 1) <= SAME_SIZE
