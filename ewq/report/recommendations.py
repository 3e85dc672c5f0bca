"""Losses against FP16, and which variant to take for which need, where statistics support it.

Every statement is a one-sided test at :data:`ewq.stats.ALPHA`, shared among all variants that it is
asked of (Bonferroni).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from ewq.measurement import Metric
from ewq.record import Verdict
from ewq.report.rows import MMLU_TASKS, UNQUANTIZED, Estimate, VariantRow, gigabytes, reference_row
from ewq.report.table import tokens_per_s
from ewq.stats import ALPHA, FEWEST_FLIPS, noninferiority, smallest_detectable_difference


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
class Recommendation:
    """The answer to one need."""

    need: str
    variant: str | None
    """The variant to take; ``None`` where no single one is."""
    sentence: str
    details: str = ""
    decided: bool = True


class Need(NamedTuple):
    """How much perplexity may grow and accuracy may be lost to serve a need."""

    name: str
    percent: float
    points: float

    def margin(self, loss: Loss) -> float:
        """The limit on a loss, in the metric's unit."""
        return math.log1p(self.percent / 100) if loss.is_perplexity else self.points / 100

    def limit(self, loss: Loss) -> str:
        """The limit in words."""
        if loss.is_perplexity:
            return f"{self.percent:g} % of FP16's perplexity"
        return f"{self.points:g} point{'s' * (self.points != 1)} of FP16's MMLU"


NEEDS = (Need("Near-lossless", 1, 1), Need("Small loss", 5, 3))


def recommendations(rows: Sequence[VariantRow]) -> list[Recommendation]:
    """Answers in the order in which people ask; nothing about what was not measured."""
    near, small = (_smallest_within(rows, need) for need in NEEDS)
    if near and small and near.variant and near.variant == small.variant:
        small = None  # the wider margin finds nothing smaller
    found = [near, small, _smallest(rows), _fastest(rows)]
    failing = {row.variant for row in rows if row.verdict is Verdict.FAIL}
    return [
        replace(each, sentence=each.sentence + " Its gates fail." * (each.variant in failing))
        for each in found
        if each is not None
    ]


class _Candidate(NamedTuple):
    variant: str
    size_bytes: float
    losses: tuple[Loss, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def verdict(self) -> Verdict:
        """By the most sensitive measure, unless another shows the loss beyond the margin."""
        return Verdict.FAIL if Verdict.FAIL in self.verdicts else self.verdicts[0]


def _smallest_within(rows: Sequence[VariantRow], need: Need) -> Recommendation | None:
    candidates = _candidates(rows, need)
    if not candidates:
        return None
    limit = need.limit(candidates[0].losses[0])
    serving = [each for each in candidates if each.verdict is Verdict.PASS]
    if not serving:
        undecided = _undecided(candidates, math.inf)
        sentence = f"no variant {'is shown to stay' if undecided else 'stays'} within {limit}."
        return Recommendation(need.name, None, sentence, undecided, decided=not undecided)
    taken = min(serving, key=lambda each: (each.size_bytes, each.losses[0].worse))
    variant, size, found, verdicts = taken
    reference = reference_row(rows)
    whole = reference and reference.weights_bytes
    share = f", {100 * (1 - size / whole):.0f} % smaller than FP16" if whole else ""
    sentence = f"{variant} ({gigabytes(size)} GB{share}): {found[0].phrase}."
    why = f"{variant} is the smallest shown to stay within {limit}."
    for loss, verdict in zip(found[1:], verdicts[1:], strict=True):
        if verdict is not Verdict.PASS:
            why += f" {loss.phrase}: a loss below {loss.detectable} could go unnoticed."
    why = f"{why} {_undecided(candidates, size)}".rstrip()
    return Recommendation(need.name, variant, sentence, why)


def _candidates(rows: Sequence[VariantRow], need: Need) -> list[_Candidate]:
    usable = [
        (row.variant, row.weights_bytes, losses(row))
        for row in rows
        if row.weights_bytes and losses(row) and row.kind is not UNQUANTIZED
    ]
    # One need has one limit: variants without the most sensitive measure cannot be judged by it.
    if any(found[0].is_perplexity for _, _, found in usable):
        usable = [each for each in usable if each[2][0].is_perplexity]
    alpha = ALPHA / max(1, len(usable))
    return [
        _Candidate(*each, tuple(loss.verdict(need.margin(loss), alpha) for loss in each[2]))
        for each in usable
    ]


def _undecided(candidates: Sequence[_Candidate], below_bytes: float) -> str:
    named = [
        f"{each.variant} ({each.losses[0].phrase})"
        for each in candidates
        if each.verdict is Verdict.INCONCLUSIVE and each.size_bytes < below_bytes
    ]
    return f"Undecided: {', '.join(named)}." if named else ""


def _smallest(rows: Sequence[VariantRow]) -> Recommendation | None:
    sized = [(size, row) for row in rows if (size := row.weights_bytes) is not None]
    if len(sized) < 2:
        return None
    size, row = min(sized, key=lambda pair: (pair[0], [loss.worse for loss in losses(pair[1])]))
    costs = " and ".join(
        loss.phrase + " (may be chance)" * (not Estimate.of(loss.metric).differs_from_zero)
        for loss in losses(row)
    )
    sentence = f"{row.variant} ({gigabytes(size)} GB): {costs or 'its quality was not measured'}."
    return Recommendation("Smallest", row.variant, sentence)


def _fastest(rows: Sequence[VariantRow]) -> Recommendation | None:
    """The fastest at decoding; not decided where a rival's clock or error leaves it open."""
    timed = [(m, row) for row in rows if (m := row.metric("throughput", "decode_tokens_per_s"))]
    timed.sort(key=lambda pair: -pair[0].value)
    if len(timed) < 2:
        return None
    need, (best, row), others = "Fastest", timed[0], timed[1:]
    doubted = [each for _, each in timed[:2] if each.clock_doubt]
    if doubted:
        names = ", ".join(each.variant for each in doubted)
        text = f"speed of {names} unreliable: noisy or throttled clock."
        return Recommendation(need, None, text, f"{doubted[0].clock_doubt}.", decided=False)
    speed = f"{row.variant} ({tokens_per_s(row)} tokens/s)"
    tied = []
    for rival, other in others:
        stderr = math.hypot(best.stderr or 0.0, rival.stderr or 0.0)
        freedom = max(1, min(best.n, rival.n) - 1)  # of the rounds
        p_value = noninferiority(best.value - rival.value, stderr, 0.0, freedom)
        tied += [other.variant] * (p_value >= ALPHA / len(others))
    if tied:
        text = f"{speed} is not clearly faster than {', '.join(tied)}."
        return Recommendation(need, None, text, decided=False)
    text = f"{speed}: {best.value / others[0][0].value:.2f} times {others[0][1].variant}."
    return Recommendation(need, row.variant, text)
