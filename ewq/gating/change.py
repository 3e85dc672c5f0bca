"""How one metric changed between a stored run and another, and whether that matters.

Where both runs carry their items, the change is worked out item by item: what both share cancels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from ewq.gating.doubts import doubt_about
from ewq.measurement import Items, Metric
from ewq.record import Record, Verdict
from ewq.storage.identity import changed_settings
from ewq.tasks.table import TASKS, ItemMean, Task, Tolerance


@dataclass(frozen=True)
class Change:
    """One metric, before and after."""

    metric: str
    unit: str
    before: float | None
    after: float | None
    stderr: float | None
    """Standard error of the difference; ``None`` for exact counts and where it is unknown."""
    p_value: float | None
    """Two-sided p of "no change"."""
    verdict: Verdict | None
    """``None`` where the metric is shown but not gated."""
    text: str
    """A sentence with both values and the tolerance."""
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
class PairedChange:
    """How sure a difference of two measurements of the same items is."""

    stderr: float | None
    """Standard error of the difference, in the metric's unit; ``None`` with one cluster only."""
    p_value: float | None
    """Two-sided p of "no change" by an exact test or with few clusters; ``None``: use the error."""
    detectable: float | None
    """Difference that would have been found with 80 % power, in the metric's unit."""


def paired_changes(before: Record, after: Record) -> dict[str, PairedChange]:
    """Metric -> how sure its change is, for the metrics whose items both records carry.

    Empty where the task keeps no items, or the items are not about the same questions or texts.
    """
    task = TASKS.get(after.task)
    if task is None or not _same_items(task, before.items, after.items):
        return {}
    return {
        figure.key: _answers(before, after) if mean.size is None else _means(before, after, mean)
        for figure in task.figures
        if (mean := figure.mean)
    }


def _same_items(task: Task, old: Items, new: Items) -> bool:
    return len(old) == len(new) > 0 and all(
        list(old.column(name)) == list(new.column(name)) for name in task.item_names
    )


def _answers(before: Record, after: Record) -> PairedChange:
    """By an exact test; questions of one subject belong together."""
    from ewq.stats import paired_accuracy

    old, new = before.items.column("answer"), after.items.column("answer")
    subjects = cast("Sequence[tuple[str, int]]", after.settings.get("subjects") or [])
    labels = [name for name, size in subjects for _ in range(size)]
    result = paired_accuracy(
        [letter.isupper() for letter in old],
        [letter.isupper() for letter in new],
        labels if len(labels) == len(new) else None,
    )
    return PairedChange(result.stderr, result.mcnemar_p, result.smallest_detectable)


def _means(before: Record, after: Record, mean: ItemMean) -> PairedChange:
    """By the error of the difference; windows of one document belong together."""
    from ewq.stats import (
        clustered_ratio,
        clusters_of,
        smallest_detectable_difference,
        two_sided_p,
    )

    old, new = before.items.column(mean.column), after.items.column(mean.column)
    sizes = after.items.column(mean.size or "")
    change = clustered_ratio(
        [now - then for then, now in zip(old, new, strict=True)],
        sizes,
        clusters_of(after.items.column("document")),
    )
    if change.stderr is None:
        return PairedChange(None, None, None)
    slope = mean.slope(sum(new) / sum(sizes))
    detectable = smallest_detectable_difference(change.stderr, df=change.freedom)
    p_value = two_sided_p(change.value, change.stderr, change.freedom)
    return PairedChange(change.stderr * slope, p_value, detectable * slope)


def incomparable(before: Record, after: Record) -> list[str]:
    """Why two records must not be compared; empty when they may be."""
    reasons = []
    if before.fingerprint != after.fingerprint:
        reasons.append(
            f"another model: {before.model} ({_short(before.fingerprint)}) and "
            f"{after.model} ({_short(after.fingerprint)})"
        )
    return reasons + changed_settings(before.settings, after.settings)


def changes(
    before: Record, after: Record, tolerances: Mapping[str, Tolerance]
) -> tuple[Change, ...]:
    """Every metric of either record, in the new record's order.

    Args:
        before: the baseline.
        after: the same benchmark now; call :func:`incomparable` first.
        tolerances: metric -> tolerance; a metric without one is shown, not gated.
    """
    paired = paired_changes(before, after)
    names = [*after.metrics, *(name for name in before.metrics if name not in after.metrics)]
    return tuple(
        _change(_Case(name, before, after, tolerances.get(name), paired.get(name)))
        for name in names
    )


@dataclass(frozen=True)
class _Case:
    name: str
    before: Record
    after: Record
    tolerance: Tolerance | None
    paired: PairedChange | None


def _change(case: _Case) -> Change:
    old, new = case.before.metrics.get(case.name), case.after.metrics.get(case.name)
    if old is None or new is None:
        return _one_sided(case, old, new)
    stderr, p_value = _error(old, new, case.paired)
    verdict, why, worse = _verdict(case, old, new, p_value)
    tolerance = f"tolerance {case.tolerance}; " if case.tolerance else ""
    return Change(
        metric=case.name,
        unit=new.unit,
        before=old.value,
        after=new.value,
        stderr=stderr,
        p_value=p_value,
        verdict=verdict,
        text=_sentence(case.name, old, new, why),
        statistic=tolerance + _statistic(case, old, new, stderr, p_value),
        worse=worse,
    )


def _one_sided(case: _Case, old: Metric | None, new: Metric | None) -> Change:
    """A metric that vanished is a failure where it is gated; a new one has no baseline yet."""
    present = old or new
    assert present is not None
    lost = new is None
    where = "the baseline has it, this run does not" if lost else "the baseline does not have it"
    return Change(
        metric=case.name,
        unit=present.unit,
        before=old.value if old else None,
        after=new.value if new else None,
        stderr=None,
        p_value=None,
        verdict=None if case.tolerance is None else Verdict.FAIL if lost else Verdict.NO_BASELINE,
        text=f"{case.name}: {'missing' if lost else 'new'} metric, {where}",
    )


def _error(
    old: Metric, new: Metric, paired: PairedChange | None
) -> tuple[float | None, float | None]:
    """Standard error of the difference and two-sided p of "no change"."""
    stderr, p_value = (paired.stderr, paired.p_value) if paired else (None, None)
    if stderr is None and old.stderr is not None and new.stderr is not None:
        stderr = math.hypot(old.stderr, new.stderr)
    if p_value is None and stderr:
        from ewq.stats import two_sided_p

        p_value = two_sided_p(new.value - old.value, stderr, _freedom(old, new))
    return stderr, p_value


def _freedom(old: Metric, new: Metric) -> int | None:
    """Degrees of freedom of an unpaired difference: those of the side that has fewer."""
    stated = [metric.freedom for metric in (old, new) if metric.freedom is not None]
    return min(stated, default=None)


def _verdict(
    case: _Case, old: Metric, new: Metric, p_value: float | None
) -> tuple[Verdict | None, str, bool]:
    """The verdict, why, and whether the metric got worse by more than is tolerated."""
    if case.tolerance is None or new.higher_is_better is None:
        return None, "not gated", False
    if old == new and case.before.items == case.after.items:
        # Equal to the last bit: whatever makes the figure doubtful, it did not change.
        return Verdict.PASS, "no change", False
    loss = (old.value - new.value) if new.higher_is_better else (new.value - old.value)
    allowed = case.tolerance.allowed(old.value)
    verdict, why = _size(loss, allowed, p_value, case.tolerance.alpha)
    worse = loss > allowed
    for record in (case.after, case.before):
        if doubt := doubt_about(case.name, record, verdict):
            return Verdict.INCONCLUSIVE, f"{why}, but {doubt.text}", worse
    return verdict, why, worse


def _size(worse: float, allowed: float, p_value: float | None, alpha: float) -> tuple[Verdict, str]:
    """Judge a change that is ``worse`` (negative: better) against what is allowed."""
    if abs(worse) <= allowed:
        return Verdict.PASS, "within tolerance"
    # The direction is asked for, so one tail of the two-sided p decides.
    certain = p_value is None or p_value / 2 < alpha
    if worse > 0:
        return (Verdict.FAIL, "worse") if certain else (Verdict.INCONCLUSIVE, "worse, within noise")
    return (Verdict.IMPROVED, "better") if certain else (Verdict.PASS, "better, within noise")


def _statistic(
    case: _Case, old: Metric, new: Metric, stderr: float | None, p_value: float | None
) -> str:
    if stderr is None:
        return "exact"
    detectable = case.paired.detectable if case.paired else None
    if detectable is None:
        from ewq.stats import smallest_detectable_difference

        detectable = smallest_detectable_difference(stderr, df=_freedom(old, new))
    kind = "paired" if case.paired else "unpaired"
    p_text = "" if p_value is None else f", one-sided p {p_value / 2:.2g}"
    return f"{kind} error {stderr:.3g}{p_text}, detectable {detectable:.3g}"


def _sentence(name: str, old: Metric, new: Metric, why: str) -> str:
    delta = new.value - old.value
    share = f", {delta / abs(old.value):+.2%}" if old.value else ""
    return f"{name}: {old.value:.6g} -> {new.value:.6g} {new.unit} ({delta:+.3g}{share}): {why}"


def _short(fingerprint: str) -> str:
    return fingerprint[:15]
