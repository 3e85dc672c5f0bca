"""Plans against random plans of the same size: did the scorer choose better than chance?

A uniform control answers another question, since it differs in size. Random allocations of the
same bytes are what a scorer has to beat, and their spread says by how much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ewq.report.evidence import weights_bytes
from ewq.report.rows import VariantRow
from ewq.stats import ALPHA
from ewq.variants import engine_of

SAME_SIZE = 0.005
"""Largest relative difference in bytes of plans that count as equally large."""
CHANCE = "random"
"""The scorer that looks at nothing."""


@dataclass(frozen=True)
class Draws:
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
        as_good = sum(kld <= self.kld_nats for kld in self.random_klds_nats)
        return (1 + as_good) / (1 + len(self.random_klds_nats))

    @property
    def p_worse(self) -> float:
        """Chance that a random plan's rank is as bad."""
        as_bad = sum(kld >= self.kld_nats for kld in self.random_klds_nats)
        return (1 + as_bad) / (1 + len(self.random_klds_nats))

    @property
    def outcome(self) -> str:
        """What may be said, and where nothing may, how many draws it would take."""
        if self.p_better <= ALPHA:
            return "better than chance"
        if self.p_worse <= ALPHA:
            return "worse than chance"
        needed = math.ceil(1 / ALPHA) - 1
        if len(self.random_klds_nats) < needed:
            return f"not decided: that takes {needed} draws"
        return "not told from chance"

    @property
    def median_kld_nats(self) -> float:
        """Of the random plans."""
        return median(self.random_klds_nats)


def draws(rows: Sequence[VariantRow]) -> list[Draws]:
    """Every scored plan of which the run holds random plans of the same size."""
    chance = [row for row in rows if scorer_of(row) == CHANCE]
    found = []
    for row in rows:
        kld = row.metric("divergence", "kld_mean")
        if kld is None or scorer_of(row) in (None, CHANCE):
            continue
        rivals = [_kld(rival) for rival in chance if _comparable(rival, row)]
        known = sorted(value for value in rivals if value is not None)
        if known:
            found.append(Draws(row.variant, kld.value, tuple(known)))
    return found


def scorer_of(row: VariantRow) -> str | None:
    """The scorer of the plan that a variant was made by; ``None`` for uniform and other ones."""
    record = row.records.get("memory")
    plan = record.side.get("plan") if record else None
    if not isinstance(plan, dict):
        return None
    rule = plan.get("rule")
    if isinstance(rule, dict) and rule.get("kind") == "uniform":
        return None
    return str(plan.get("scorer"))


def _comparable(one: VariantRow, other: VariantRow) -> bool:
    sizes = weights_bytes(one), weights_bytes(other)
    if sizes[0] is None or sizes[1] is None or engine_of(one.variant) != engine_of(other.variant):
        return False
    return abs(sizes[0] / sizes[1] - 1) <= SAME_SIZE


def _kld(row: VariantRow) -> float | None:
    metric = row.metric("divergence", "kld_mean")
    return None if metric is None else metric.value
