"""Item by item comparison of two stored records: what both runs share cancels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from ewq.measurement import Items
from ewq.record import Record
from ewq.tasks.table import TASKS, ItemMean, Task


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
