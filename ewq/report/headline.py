"""Which variant to take for which need: said only where the run's statistics support it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ewq.report import kinds
from ewq.report.claim import Claim, failed_gates
from ewq.report.contests import fastest, plan_or_uniform
from ewq.report.evidence import Loss, Standing, mmlu_loss, perplexity_loss, weights_bytes
from ewq.report.kinds import kind_of
from ewq.report.rows import VariantRow
from ewq.report.subject import Reported
from ewq.stats import ALPHA


@dataclass(frozen=True)
class Need:
    """How much a variant may lose to serve a need."""

    name: str
    perplexity_margin: float
    """Share by which perplexity may grow."""
    mmlu_margin: float
    """Accuracy that may be lost, a fraction."""


_NAMED = 4
"""Undecided variants that a sentence names."""
NEEDS = (
    Need("Near-lossless", 0.01, 0.01),
    Need("Small loss, smaller model", 0.05, 0.03),
)


def claims(subject: Reported) -> list[Claim]:
    """Answers in the order in which people ask; nothing about what was not measured."""
    near, small = (_within(subject, need) for need in NEEDS)
    if near and small and near.variant and near.variant == small.variant:
        small = None  # the wider margin finds nothing smaller
    found = [near, small, _smallest(subject), fastest(subject), plan_or_uniform(subject)]
    return [claim for claim in found if claim is not None]


@dataclass(frozen=True)
class _Case:
    """A variant that could serve a need."""

    row: VariantRow
    size_bytes: float
    losses: tuple[Loss, ...]
    standings: tuple[Standing, ...]

    @property
    def serves(self) -> bool:
        """The most sensitive measure shows the loss within, and none shows it beyond."""
        return self.standings[0] is Standing.WITHIN and Standing.BEYOND not in self.standings

    @property
    def open(self) -> bool:
        return not self.serves and Standing.BEYOND not in self.standings


def _within(subject: Reported, need: Need) -> Claim | None:
    cases = _cases(subject.rows, need)
    if not cases:
        return None
    limit = _limit(cases[0], need)
    serving = [case for case in cases if case.serves]
    if not serving:
        undecided = _undecided(cases, math.inf)
        shown = "is shown to stay" if undecided else "stays"
        text = f"no variant {shown} within {limit}.{undecided}"
        return Claim(need.name, None, text, decided=not undecided)
    best = min(serving, key=lambda case: case.size_bytes)
    said = "; ".join(_told(*pair, need) for pair in zip(best.losses, best.standings, strict=True))
    head = f"{best.row.variant} ({_size(best, subject)}) is the smallest shown to stay within"
    doubts = f"{_chance(best.row)}{failed_gates(best.row)}{_undecided(cases, best.size_bytes)}"
    return Claim(need.name, best.row.variant, f"{head} {limit}. Measured: {said}.{doubts}")


def _hedged(loss: Loss) -> str:
    return loss.words if loss.told_from_zero else f"{loss.words} (may be chance)"


def _cases(rows: Sequence[VariantRow], need: Need) -> list[_Case]:
    quantized = [row for row in rows if kind_of(row.variant) is not kinds.REFERENCE]
    measured = [(row, weights_bytes(row), _losses(row)) for row in quantized]
    told = [(row, size, losses) for row, size, losses in measured if size and losses]
    # One need has one limit: variants without the most sensitive measure cannot be judged by it.
    judge = min((losses[0].rank for _, _, losses in told), default=0)
    usable = [(row, size, losses) for row, size, losses in told if losses[0].rank == judge]
    alpha = ALPHA / max(1, len(usable))
    return [
        _Case(
            row, size, losses, tuple(loss.standing(_margin(loss, need), alpha) for loss in losses)
        )
        for row, size, losses in usable
    ]


def _losses(row: VariantRow) -> tuple[Loss, ...]:
    """Most sensitive first."""
    found = (perplexity_loss(row), mmlu_loss(row))
    return tuple(loss for loss in found if loss is not None)


def _margin(loss: Loss, need: Need) -> float:
    in_nats = loss.measure == "perplexity"
    return math.log1p(need.perplexity_margin) if in_nats else need.mmlu_margin


def _limit(case: _Case, need: Need) -> str:
    if case.losses[0].measure == "perplexity":
        return f"{100 * need.perplexity_margin:g} % of FP16's perplexity"
    return f"{_points(need)} of FP16's MMLU"


def _told(loss: Loss, standing: Standing, need: Need) -> str:
    if standing is Standing.WITHIN:
        return loss.words
    return (
        f"{loss.words}, with too few questions to show a loss of {_points(need)} (only one of "
        f"{100 * loss.detectable():.1f} would have been found)"
    )


def _points(need: Need) -> str:
    points = 100 * need.mmlu_margin
    return f"{points:g} point{'s' * (points != 1)}"


def _chance(row: VariantRow) -> str:
    return " MMLU by letters is at chance level and says nothing." if row.at_chance else ""


def _undecided(cases: Sequence[_Case], below_bytes: float) -> str:
    smaller = [case for case in cases if case.open and case.size_bytes < below_bytes]
    if not smaller:
        return ""
    named = [f"{case.row.variant} ({case.losses[0].words})" for case in smaller]
    more = len(named) - _NAMED
    rest = f" and {more} more" if more > 0 else ""
    return f" Undecided: {', '.join(named[:_NAMED])}{rest}."


def _size(case: _Case, subject: Reported) -> str:
    whole = subject.reference and weights_bytes(subject.reference)
    share = f", {100 * (1 - case.size_bytes / whole):.0f} % smaller than FP16" if whole else ""
    return f"{_sized(case.size_bytes, subject)}{share}"


def _sized(size_bytes: float, subject: Reported) -> str:
    return f"{subject.unit.text(size_bytes)} {subject.unit.name}"


def _smallest(subject: Reported) -> Claim | None:
    """Size is an exact count; what it costs is told with its error."""
    sized = [(size, row) for row in subject.rows if (size := weights_bytes(row)) is not None]
    if len(sized) < 2:
        return None
    size, row = min(sized, key=lambda pair: pair[0])
    losses = " and ".join(_hedged(loss) for loss in _losses(row))
    costs = f"Measured against FP16: {losses}" if losses else "What it loses was not measured"
    head = f"{row.variant} is the smallest, {_sized(size, subject)}"
    sentence = f"{head}. {costs}.{_chance(row)}{failed_gates(row)}"
    return Claim("Memory above all", row.variant, sentence)
