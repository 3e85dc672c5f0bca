"""Variants against each other: the fastest, and plans against uniform controls."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ewq.measurement import Metric
from ewq.report.claim import Claim, failed_gates
from ewq.report.duels import Duel, duels
from ewq.report.rows import VariantRow
from ewq.report.subject import Reported
from ewq.stats import ALPHA

_DECODE = "decode_tokens_per_s"


def fastest(subject: Reported) -> Claim | None:
    """The fastest at decoding; not decided where a rival's clock or error leaves it open."""
    timed = [(m, row) for row in subject.rows if (m := row.metric("throughput", _DECODE))]
    timed.sort(key=lambda pair: -pair[0].value)
    if len(timed) < 2:
        return None
    need, (best, row), others = "Speed above all", timed[0], timed[1:]
    doubted = [r for _, r in timed[:2] if r.clock_doubt]
    if doubted:
        names = " and ".join(r.variant for r in doubted)
        text = f"the times of {names} cannot be trusted ({doubted[0].clock_doubt})."
        return Claim(need, None, text, decided=False)
    speed = f"{best.value:.4g} ± {best.stderr or 0.0:.2g} tokens/s at batch size 1"
    if tied := _tied(best, others):
        text = f"{row.variant} ({speed}) is not certainly faster than {_listed(tied)}."
        return Claim(need, None, text, decided=False)
    ahead, second = best.value / others[0][0].value, others[0][1]
    text = f"{row.variant} decodes {speed}, {ahead:.2f} times {second.variant}, the next."
    return Claim(need, row.variant, text + failed_gates(row))


def _tied(best: Metric, others: Sequence[tuple[Metric, VariantRow]]) -> list[str]:
    """Rivals that ``best`` is not shown to be faster than."""
    from ewq.stats import noninferiority

    alpha = ALPHA / len(others)
    tied = []
    for metric, rival in others:
        error = math.hypot(best.stderr or 0.0, metric.stderr or 0.0)
        freedom = max(1, min(best.n, metric.n) - 1)
        if not noninferiority(best.value - metric.value, error, 0.0, alpha, freedom).holds:
            tied.append(rival.variant)
    return tied


def plan_or_uniform(subject: Reported) -> Claim | None:
    """Whether planning paid: EWQ's variants against uniform ones of the same engine."""
    fought = duels(subject.rows)
    if not fought:
        return None
    won, lost = [duel for duel in fought if duel.won], [duel for duel in fought if duel.lost]
    rest = len(fought) - len(won) - len(lost)
    need = "Plan or uniform"
    if not won and not lost:
        pairs = "pair has" if rest == 1 else "pairs have"
        text = f"none of {rest} {pairs} a side that is shown to be both smaller and better."
        return Claim(need, None, text, decided=False)
    parts = [
        *(f"{d.plan} is smaller than {d.control} and better ({d.words})" for d in won),
        *(_beaten(control, lost) for control in dict.fromkeys(d.control for d in lost)),
    ]
    text = "; ".join(parts) + "." + _remaining(rest)
    return Claim(need, _taken(won, lost), text)


def _taken(won: Sequence[Duel], lost: Sequence[Duel]) -> str | None:
    """The one variant that all certain results point to."""
    names = {d.plan for d in won} | {d.control for d in lost}
    return names.pop() if len(names) == 1 else None


def _beaten(control: str, lost: Sequence[Duel]) -> str:
    """All plans that one control beats, in one clause."""
    own = [duel for duel in lost if duel.control == control]
    if len(own) == 1:
        return f"{control} is smaller than {own[0].plan} and better ({own[0].words})"
    sizes = sorted(100 * (duel.size_share - 1) for duel in own)
    losses = sorted(100 * duel.contrast.relative for duel in own)
    span = f"sizes {_span(sizes, 0)} %, perplexity {_span(losses, 2)} %"
    return f"{control} is smaller than {_listed([d.plan for d in own])} and better (plans' {span})"


def _span(values: Sequence[float], digits: int) -> str:
    low, high = (f"{value:+.{digits}f}" for value in (values[0], values[-1]))
    return low if low == high else f"{low} to {high}"


def _remaining(rest: int) -> str:
    if not rest:
        return ""
    one = rest == 1
    pairs = "other pair trades" if one else f"other {rest} pairs trade"
    return f" The {pairs} size against quality or {'is' if one else 'are'} undecided."


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
