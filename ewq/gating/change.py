"""How one metric changed between two stored runs, item by item where both carry their items."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from ewq.measurement import Doubt, DoubtKind, Metric
from ewq.record import Record, Verdict
from ewq.stats import (
    clustered_ratio,
    clusters_of,
    paired_answers,
    smallest_detectable_difference,
    two_sided_p,
)
from ewq.storage.environment import changed_settings
from ewq.tasks.table import ItemMean, Kind, Tolerance, figure_of, find_task, known_task

_OF_THE_REFERENCE = (DoubtKind.OTHER_SESSION, DoubtKind.DECODE_MODE)


@dataclass(frozen=True)
class Change:
    """One metric of one benchmark, before and after."""

    variant: str
    task: str
    metric: str
    unit: str
    before: float | None
    after: float | None
    verdict: Verdict | None
    """``None`` where the metric is shown but not gated."""
    text: str
    stderr: float | None = None
    """Standard error of the difference; ``None`` for exact counts and where it is unknown."""
    p_value: float | None = None
    """Two-sided p of "no change"."""
    statistic: str = ""
    """How certain the change is, and by which test."""
    worse: bool = False
    """Whether it is worse by more than is tolerated, certain or not."""

    @property
    def sentence(self) -> str:
        """The text with its statistic."""
        return f"{self.text} [{self.statistic}]" if self.statistic else self.text

    @property
    def delta(self) -> float | None:
        """``after - before``."""
        if self.before is None or self.after is None:
            return None
        return self.after - self.before

    @property
    def relative(self) -> float | None:
        """The difference as a share of the value before; ``None`` from zero."""
        return self.delta / abs(self.before) if self.delta is not None and self.before else None


@dataclass(frozen=True)
class Certainty:
    """How sure a difference of two measurements is."""

    stderr: float
    """Standard error of the difference, in the metric's unit."""
    p_value: float
    """Two-sided p of "no change"."""
    detectable: float
    """Difference that would have been found with 80 % power, in the metric's unit."""
    paired: bool = True

    def __str__(self) -> str:
        kind = "paired" if self.paired else "unpaired"
        p_text = f"one-sided p {self.p_value / 2:.2g}"
        return f"{kind} error {self.stderr:.3g}, {p_text}, detectable {self.detectable:.3g}"


def paired_changes(before: Record, after: Record) -> dict[str, Certainty]:
    """Metric -> how sure its change is, where both records carry enough items, and the same."""
    task, old, new = known_task(after.task), before.items, after.items
    if task is None or not len(old) == len(new) > 0:
        return {}
    if any(list(old.column(name)) != list(new.column(name)) for name in task.item_names):
        return {}
    if task.family:
        return {} if incomparable(before, after) else _documents(before, after)
    found = {
        figure.key: _answers(before, after) if mean.size is None else _means(before, after, mean)
        for figure in task.figures
        if (mean := figure.mean)
    }
    return {metric: certainty for metric, certainty in found.items() if certainty}


def _documents(before: Record, after: Record) -> dict[str, Certainty]:
    """By what pairs a variant with its reference."""
    pairs: Mapping[str, Metric] = find_task(after.task).module.pair(after, before)
    found = {}
    for metric in after.metrics:
        delta, flips = (pairs.get(f"{of}/{metric}") for of in ("delta", "mcnemar_p"))
        if delta and delta.stderr is not None:
            errors = (delta.stderr, delta.freedom)
            p_value = flips.value if flips else two_sided_p(delta.value, *errors)
            detectable = smallest_detectable_difference(*errors)
            found[metric] = Certainty(delta.stderr, p_value, detectable)
    return found


def _answers(before: Record, after: Record) -> Certainty:
    """By an exact test; questions of one subject belong together."""
    old, new = (map(str.isupper, each.items.column("answer")) for each in (before, after))
    subjects = cast("Sequence[tuple[str, int]]", after.settings.get("subjects") or [])
    labels = [name for name, size in subjects for _ in range(size)]
    clusters = labels if len(labels) == len(after.items) else None
    found = paired_answers(list(old), list(new), clusters)
    stderr = found.delta.stderr or 0.0
    return Certainty(stderr, found.mcnemar_p.value, found.smallest_detectable)


def _means(before: Record, after: Record, mean: ItemMean) -> Certainty | None:
    """By the error of the difference; windows of one document belong together."""
    old, new = before.items.column(mean.column), after.items.column(mean.column)
    sizes = after.items.column(mean.size or "")
    differences = [now - then for then, now in zip(old, new, strict=True)]
    change = clustered_ratio(differences, sizes, clusters_of(after.items.column("document")))
    if change.stderr is None:
        return None
    slope = mean.slope(sum(new) / sum(sizes))
    detectable = smallest_detectable_difference(change.stderr, change.freedom)
    p_value = two_sided_p(change.value, change.stderr, change.freedom)
    return Certainty(change.stderr * slope, p_value, detectable * slope)


def incomparable(before: Record, after: Record) -> list[str]:
    """Why two records must not be compared; empty when they may be."""
    reasons = []
    if before.fingerprint != after.fingerprint:
        old, new = (f"{each.model} ({each.fingerprint[:15]})" for each in (before, after))
        reasons.append(f"another model: {old} and {new}")
    return reasons + changed_settings(before.settings, after.settings)


def changes(
    before: Record, after: Record, tolerances: Mapping[str, Tolerance]
) -> tuple[Change, ...]:
    """Every metric of two comparable records; one without a tolerance is shown, not gated."""
    paired, found = paired_changes(before, after), []
    for name in dict.fromkeys([*after.metrics, *before.metrics]):
        figure = figure_of(after.task, name)
        tolerance = tolerances.get(name) or tolerances.get(figure.key if figure else name)
        found.append(_change(name, before, after, tolerance, paired.get(name)))
    return tuple(found)


def _change(
    name: str, before: Record, after: Record, tolerance: Tolerance | None, paired: Certainty | None
) -> Change:
    old, new = before.metrics.get(name), after.metrics.get(name)
    make = partial(Change, after.variant, after.task, name)
    if new is None:
        old = before.metrics[name]
        text = f"{name}: missing metric, the baseline has it, this run does not"
        return make(old.unit, old.value, None, Verdict.FAIL if tolerance else None, text)
    if old is None:
        text = f"{name}: new metric, the baseline does not have it"
        return make(new.unit, None, new.value, Verdict.NO_BASELINE if tolerance else None, text)
    certainty = paired or _unpaired(old, new)
    verdict, why, worse = _verdict(name, before, after, tolerance, certainty)
    statistic = f"tolerance {tolerance}; " * bool(tolerance) + str(certainty or "exact")
    delta = f"{new.value - old.value:+.3g}"
    if old.value:
        delta += f", {(new.value - old.value) / abs(old.value):+.2%}"
    text = f"{name}: {old.value:.6g} -> {new.value:.6g} {new.unit} ({delta}): {why}"
    stderr, p_value = (certainty.stderr, certainty.p_value) if certainty else (None, None)
    return make(new.unit, old.value, new.value, verdict, text, stderr, p_value, statistic, worse)


def _unpaired(old: Metric, new: Metric) -> Certainty | None:
    """From both errors; the side that has fewer degrees of freedom decides."""
    if old.stderr is None or new.stderr is None:
        return None
    stderr = math.hypot(old.stderr, new.stderr)
    stated = [metric.freedom for metric in (old, new) if metric.freedom is not None]
    freedom = min(stated, default=None)
    p_value = two_sided_p(new.value - old.value, stderr, freedom)
    detectable = smallest_detectable_difference(stderr, freedom)
    return Certainty(stderr, p_value, detectable, paired=False)


def _verdict(
    name: str, before: Record, after: Record, tolerance: Tolerance | None, sure: Certainty | None
) -> tuple[Verdict | None, str, bool]:
    """The verdict, why, and whether the metric got worse by more than is tolerated."""
    old, new = before.metrics[name], after.metrics[name]
    if tolerance is None or new.higher_is_better is None:
        return None, "not gated", False
    if old == new and before.items == after.items:
        # Equal to the last bit: whatever makes the figure doubtful, it did not change.
        return Verdict.PASS, "no change", False
    loss = (old.value - new.value) if new.higher_is_better else (new.value - old.value)
    allowed = tolerance.allowed(old.value)
    # The direction is asked for, so one tail of the two-sided p decides.
    certain = sure is None or sure.p_value / 2 < tolerance.alpha
    if abs(loss) <= allowed:
        verdict, why = Verdict.PASS, "within tolerance"
    elif certain:
        verdict, why = (Verdict.FAIL, "worse") if loss > 0 else (Verdict.IMPROVED, "better")
    else:
        verdict = Verdict.INCONCLUSIVE if loss > 0 else Verdict.PASS
        why = f"{'worse' if loss > 0 else 'better'}, within noise"
    for record in (after, before):
        if doubt := doubt_about(name, record, verdict):
            return Verdict.INCONCLUSIVE, f"{why}, but {doubt.text}", loss > allowed
    return verdict, why, loss > allowed


def doubt_about(metric: str, record: Record, verdict: Verdict | None = None) -> Doubt | None:
    """The first doubt about a metric; of those that make its ``verdict`` inconclusive, if given."""
    figure = figure_of(record.task, metric)
    if figure is None or verdict is Verdict.INCONCLUSIVE:
        return None
    for doubt in record.doubts:
        if doubt.kind is DoubtKind.CHANCE:
            # A variant that fell to chance while its reference did not has failed for certain.
            counts = figure.kind is Kind.CHOICE and verdict is not Verdict.FAIL
        else:
            own = figure.paired or doubt.kind not in _OF_THE_REFERENCE
            counts = figure.kind is Kind.CLOCK and own
        if counts:
            return doubt
    return None
