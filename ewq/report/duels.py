"""Each plan against each uniform control of its engine: size and perplexity, paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ewq.report.draws import CHANCE, scorer_of
from ewq.report.evidence import Contrast, contrast, weights_bytes
from ewq.report.kinds import kind_of
from ewq.report.rows import VariantRow, with_error
from ewq.stats import ALPHA
from ewq.variants import engine_of


@dataclass(frozen=True)
class Duel:
    """One plan and one uniform control on the same texts."""

    plan: str
    control: str
    size_share: float
    """Bytes of the plan's weights as a share of the control's."""
    contrast: Contrast
    alpha: float

    @property
    def decided(self) -> bool:
        """Whether it is certain which of them has the lower perplexity."""
        return self.contrast.decided(self.alpha)

    @property
    def won(self) -> bool:
        """The plan is no larger and certainly better."""
        return self.decided and self.contrast.better == self.plan and self.size_share <= 1

    @property
    def lost(self) -> bool:
        """The control is no larger and certainly better."""
        return self.decided and self.contrast.better == self.control and self.size_share >= 1

    @property
    def outcome(self) -> str:
        """The result in words."""
        if self.won:
            return "plan smaller and better"
        if self.lost:
            return "control smaller and better"
        return "trades size for quality" if self.decided else "perplexity undecided"

    @property
    def perplexity_percent(self) -> str:
        """The plan's perplexity against the control's, with its paired error."""
        found = self.contrast
        ratio, error = 1 + found.relative, found.stderr
        if found.better == self.plan:
            ratio, error = 1 / ratio, None if error is None else error / ratio**2
        percent = None if error is None else 100 * error
        return with_error(100 * (ratio - 1), percent, 2, signed=True)

    @property
    def words(self) -> str:
        """Both differences in one phrase, the plan's against the control's."""
        size = 100 * (self.size_share - 1)
        return f"plan's size {size:+.0f} %, perplexity {self.perplexity_percent} %"


def duels(rows: Sequence[VariantRow]) -> list[Duel]:
    """All pairs of one engine that share their texts and whose sizes are known."""
    pairs = [
        (plan, control)
        for plan in rows
        if kind_of(plan.variant).planned and scorer_of(plan) != CHANCE
        for control in rows
        if kind_of(control.variant).control
        and engine_of(control.variant) == engine_of(plan.variant)
    ]
    found = []
    for plan, control in pairs:
        sizes, difference = (weights_bytes(plan), weights_bytes(control)), contrast(plan, control)
        if sizes[0] and sizes[1] and difference:
            share = sizes[0] / sizes[1]
            duel = Duel(plan.variant, control.variant, share, difference, ALPHA / len(pairs))
            found.append(duel)
    return found
