"""The gate: one record against its limits and its baseline gives one of five verdicts."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from ewq.gating.change import changes, doubt_about, incomparable
from ewq.gating.thresholds import Limit, Test
from ewq.measurement import Metric
from ewq.record import Reason, Record, Verdict
from ewq.stats import mcnemar_exact, noninferiority, smallest_detectable_difference
from ewq.tasks.table import Tolerance, figure_of

PRECEDENCE = tuple(map(Verdict, ("fail", "inconclusive", "no-baseline", "improved", "pass")))
"""The first verdict that any finding has is the verdict of the whole."""


def judge(
    record: Record,
    limits: Mapping[str, Limit],
    baseline: Record | None = None,
    tolerances: Mapping[str, Tolerance] | None = None,
    *,
    missing_baseline: Sequence[str] = (),
) -> Record:
    """Gate a record by limits, and by tolerances against the same benchmark of a baseline.

    ``missing_baseline`` says why there is none although one was asked for. Reasons of the record
    returned are what was found and is no plain pass, the worst first.
    """
    findings = [_limit_finding(record, metric, limit) for metric, limit in limits.items()]
    refused = list(missing_baseline)
    if baseline is not None:
        refused += incomparable(baseline, record)
        found = () if refused else changes(baseline, record, tolerances or {})
        findings += [
            Reason(c.verdict, f"against the baseline, {c.text}", c.statistic, c.metric, c.worse)
            for c in found
            # A metric that is merely new is not a missing baseline of the whole benchmark.
            if c.verdict is not None and c.verdict is not Verdict.NO_BASELINE
        ]
    if not refused and not findings:
        asked = "no metric of the baseline is gated" if baseline else "no baseline was asked for"
        refused.append(f"no limit applies and {asked}, so nothing was gated")
    if refused:
        findings.append(Reason(Verdict.NO_BASELINE, f"no baseline: {'; '.join(refused)}"))
    findings.sort(key=lambda finding: PRECEDENCE.index(finding.verdict))
    reasons = tuple(found for found in findings if found.verdict is not Verdict.PASS)
    return replace(record, verdict=findings[0].verdict, reasons=reasons)


def lost_in_doubt(record: Record) -> bool:
    """Whether a stored record got worse than its baseline by more than is allowed, in doubt."""
    return record.verdict is Verdict.INCONCLUSIVE and any(r.worse for r in record.reasons)


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of several together, by :data:`PRECEDENCE`; ``no-baseline`` of none."""
    return min(verdicts, key=PRECEDENCE.index, default=Verdict.NO_BASELINE)


def _limit_finding(record: Record, name: str, limit: Limit) -> Reason:
    metric, figure = record.metrics.get(name), figure_of(record.task, name)
    if metric is None:
        if figure and figure.alternative in record.metrics:
            text = f"{name} does not apply: this device reports {figure.alternative}"
            return Reason(Verdict.PASS, text, metric=name)
        known = ", ".join(record.metrics) or "none"
        text = f"{name}: missing metric, gated by {limit}; present: {known}"
        return Reason(Verdict.FAIL, text, metric=name)
    verdict, statistic = _TESTS[limit.test](record, name, limit)
    if doubt := doubt_about(name, record, verdict):
        verdict, statistic = Verdict.INCONCLUSIVE, f"{statistic}; {doubt.text}"
    error = "" if metric.stderr is None else f" ± {metric.stderr:.2g}"
    text = f"{name} {metric.value:.6g}{error} {metric.unit} {_RELATION[verdict]} {limit}"
    return Reason(verdict, text + _two_values(record, name, metric), statistic, name)


def _plain_bound(record: Record, name: str, limit: Limit) -> tuple[Verdict, str]:
    metric = record.metrics[name]
    return (Verdict.FAIL if _beyond(metric.value, limit) else Verdict.PASS), _precision(metric)


def _noninferiority(record: Record, name: str, limit: Limit) -> tuple[Verdict, str]:
    """Pass when shown to be inside; fail when outside and different from "no change" at all."""
    metric, figure = record.metrics[name], figure_of(record.task, name)
    value, stderr, freedom = metric.value, metric.stderr, _freedom(metric)
    if stderr is None:
        return Verdict.INCONCLUSIVE, "no standard error to test with: too few items"
    p_value = max(
        noninferiority(sign * value, stderr, -sign * bound, freedom)
        for sign, bound in ((1.0, limit.min), (-1.0, limit.max))
        if bound is not None
    )
    detectable = smallest_detectable_difference(stderr, freedom)
    text = f"non-inferiority p {p_value:.3g} at alpha {limit.alpha:g}, detectable {detectable:.3g}"
    text += f", n {metric.n}"
    if p_value < limit.alpha:
        return Verdict.PASS, text
    distance = abs(value - (figure.equal if figure else 0.0))
    changed = noninferiority(distance, stderr, 0.0, freedom) < limit.alpha
    failed = changed and _beyond(value, limit)
    return (Verdict.FAIL if failed else Verdict.INCONCLUSIVE), text


def broken_and_mended(delta: Metric, flips: Metric) -> tuple[int, int]:
    """Questions whose answers became wrong, and right, by what the accuracy changed by."""
    flipped, gained = round(flips.value * flips.n), round(delta.value * delta.n)
    return (flipped - gained) // 2, (flipped + gained) // 2


def _mcnemar(record: Record, name: str, limit: Limit) -> tuple[Verdict, str]:
    """Fail when beyond the limit and more questions broke than chance would; exact."""
    flips_name = re.sub("^(accuracy_)?delta", "flips", name)
    metric, flips = record.metrics[name], record.metrics.get(flips_name)
    if flips is None:
        return Verdict.FAIL, f"missing metric {flips_name}, which McNemar's test needs"
    broken, mended = broken_and_mended(metric, flips)
    p_value = mcnemar_exact(broken, mended) / 2
    text = f"McNemar one-sided p {p_value:.3g} at alpha {limit.alpha:g}, {broken} broken and "
    text += f"{mended} mended of {metric.n}, {_precision(metric)}"
    if not _beyond(metric.value, limit):
        return Verdict.PASS, text
    return (Verdict.FAIL if p_value < limit.alpha else Verdict.INCONCLUSIVE), text


_TESTS: dict[Test, Callable[[Record, str, Limit], tuple[Verdict, str]]] = {
    Test.BOUND: _plain_bound,
    Test.NONINFERIORITY: _noninferiority,
    Test.MCNEMAR: _mcnemar,
}
_RELATION = {
    Verdict.PASS: "is within",
    Verdict.FAIL: "is beyond",
    Verdict.INCONCLUSIVE: "is inconclusive against",
}


def _freedom(metric: Metric) -> int | None:
    """Degrees of freedom of the error; ``None`` for the normal distribution."""
    if metric.freedom is not None:
        return metric.freedom
    return metric.n - 1 if metric.n > 1 else None


def _beyond(value: float, limit: Limit) -> bool:
    low, high = limit.min, limit.max
    return (low is not None and value < low) or (high is not None and value > high)


def _precision(metric: Metric) -> str:
    if metric.stderr is None:
        return "exact"
    detectable = smallest_detectable_difference(metric.stderr, _freedom(metric))
    return f"plain bound, detectable {detectable:.3g}, n {metric.n}"


def _two_values(record: Record, name: str, metric: Metric) -> str:
    """The reference's value and this variant's, behind a paired metric."""
    figure = figure_of(record.task, name)
    base, invert = (figure and figure.reference) or ("", None)
    now = record.metrics.get(base)
    if now is None or invert is None:
        return ""
    return f" ({base}: reference {invert(now.value, metric.value):.4g}, now {now.value:.4g})"
