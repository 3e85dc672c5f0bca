"""Which variant to take for which need: said only where the run's statistics support it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ewq.gating.doubts import doubt_about
from ewq.record import Verdict
from ewq.report import kinds
from ewq.report.duels import duels
from ewq.report.evidence import Loss, Standing, mmlu_loss, perplexity_loss, weights_bytes
from ewq.report.kinds import kind_of
from ewq.report.rows import GB, VariantRow
from ewq.report.subject import Reported
from ewq.stats import ALPHA


@dataclass(frozen=True)
class Claim:
    """The answer to one need."""

    need: str
    variant: str | None
    """The variant to take; ``None`` where the run does not decide."""
    sentence: str


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
    found = [near, small, _smallest(subject), _fastest(subject), _plans_against_controls(subject)]
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
        return Claim(need.name, None, f"no variant is shown to stay within {limit}.{undecided}")
    best = min(serving, key=lambda case: case.size_bytes)
    said = "; ".join(_told(*pair, need) for pair in zip(best.losses, best.standings, strict=True))
    sentence = (
        f"{best.row.variant}, {_size(best, subject)}, is the smallest that is shown to stay within "
        f"{limit}: {said}.{_chance(best.row)}{_gate(best.row)}{_undecided(cases, best.size_bytes)}"
    )
    return Claim(need.name, best.row.variant, sentence)


def _cases(rows: Sequence[VariantRow], need: Need) -> list[_Case]:
    quantized = [row for row in rows if kind_of(row.variant) is not kinds.REFERENCE]
    measured = [(row, weights_bytes(row), _losses(row)) for row in quantized]
    usable = [(row, size, losses) for row, size, losses in measured if size and losses]
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
    points = 100 * need.mmlu_margin
    return f"{points:g} point{'s' * (points != 1)} of FP16's MMLU"


def _told(loss: Loss, standing: Standing, need: Need) -> str:
    if standing is Standing.WITHIN:
        return loss.words
    return (
        f"{loss.words}, which decides nothing at a margin of {100 * need.mmlu_margin:g}: only a "
        f"loss of {100 * loss.detectable():.1f} would have been found"
    )


def _chance(row: VariantRow) -> str:
    return " MMLU by letters is at chance level and says nothing." if row.at_chance else ""


def _gate(row: VariantRow) -> str:
    return " Its gates fail all the same: see Verdicts." if row.verdict is Verdict.FAIL else ""


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
    return f"{case.size_bytes / GB:.3g} GB{share}"


def _smallest(subject: Reported) -> Claim | None:
    """Size is an exact count; what it costs is told with its error."""
    sized = [(size, row) for row in subject.rows if (size := weights_bytes(row)) is not None]
    if len(sized) < 2:
        return None
    size, row = min(sized, key=lambda pair: pair[0])
    losses = "; ".join(loss.words for loss in _losses(row))
    costs = f"against FP16, {losses}" if losses else "its loss was not measured"
    sentence = f"{row.variant}, {size / GB:.3g} GB: {costs}.{_chance(row)}{_gate(row)}"
    return Claim("Memory above all", row.variant, sentence)


def _fastest(subject: Reported) -> Claim | None:
    from ewq.stats import noninferiority

    need, name = "Speed above all", "decode_tokens_per_s"
    timed = [(m, row) for row in subject.rows if (m := row.metric("throughput", name))]
    timed.sort(key=lambda pair: -pair[0].value)
    if len(timed) < 2:
        return None
    (best, row), others = timed[0], timed[1:]
    doubts = [d.reason for _, r in timed[:2] if (d := doubt_about(name, r.records["throughput"]))]
    if doubts:
        return Claim(need, None, f"the clocks cannot be trusted: {doubts[0]}.")
    alpha = ALPHA / len(others)
    tied = []
    for metric, rival in others:
        error = math.hypot(best.stderr or 0.0, metric.stderr or 0.0)
        freedom = max(1, min(best.n, metric.n) - 1)
        if not noninferiority(best.value - metric.value, error, 0.0, alpha, freedom).holds:
            tied.append(rival.variant)
    speed = f"{best.value:.4g} ± {best.stderr or 0.0:.2g} tokens/s at batch size 1"
    if tied:
        text = f"{row.variant} ({speed}) is not certainly faster than "
        return Claim(need, None, text + ", ".join(tied) + ".")
    runner, second = others[0]
    ahead = best.value / runner.value
    text = f"{row.variant} decodes {speed}, {ahead:.2f} times {second.variant}, the next."
    return Claim(need, row.variant, text + _gate(row))


def _plans_against_controls(subject: Reported) -> Claim | None:
    """Whether planning paid: EWQ's variants against uniform ones of the same engine."""
    fought = duels(subject.rows)
    if not fought:
        return None
    won = [duel for duel in fought if duel.won]
    lost = [duel for duel in fought if duel.lost]
    parts = [
        *(f"{d.plan} is smaller than {d.control} and better ({d.words})" for d in won),
        *(f"{d.control} is smaller than {d.plan} and better ({d.words})" for d in lost),
    ]
    rest = len(fought) - len(won) - len(lost)
    if not parts:
        pairs = "pair has" if rest == 1 else "pairs have"
        text = f"none of {rest} {pairs} a side that is shown to be both smaller and better."
        return Claim("Plan or uniform", None, text)
    more = f" The other {rest} pairs trade size against quality or are undecided." if rest else ""
    sentence = "; ".join(parts) + "." + more
    return Claim("Plan or uniform", won[0].plan if won and not lost else None, sentence)
