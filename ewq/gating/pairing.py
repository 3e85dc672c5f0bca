"""Item by item comparison of two stored records: what both runs share cancels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from ewq.measurement import Items
from ewq.record import Record


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
    pair = _PAIRINGS.get(after.task)
    if pair is None or not len(before.items) or not len(after.items):
        return {}
    return pair(before, after)


def _pair_answers(before: Record, after: Record) -> dict[str, PairedChange]:
    """Items hold one letter a question, upper case where it is right."""
    from ewq.stats import paired_accuracy

    old, new = before.items.column("answer"), after.items.column("answer")
    if len(old) != len(new):
        return {}
    subjects = cast("Sequence[tuple[str, int]]", after.settings.get("subjects") or [])
    labels = [name for name, size in subjects for _ in range(size)]
    result = paired_accuracy(
        [letter.isupper() for letter in old],
        [letter.isupper() for letter in new],
        labels if len(labels) == len(new) else None,
    )
    change = PairedChange(result.stderr, result.mcnemar_p, result.smallest_detectable)
    return {"accuracy": change}


def _pair_windows(before: Record, after: Record) -> dict[str, PairedChange]:
    old, new = before.items, after.items
    if not _equal(old, new, "domain", "tokens", "bytes", "document"):
        return {}
    nll, tokens, size_bytes = (sum(new.column(name)) for name in ("nll", "tokens", "bytes"))
    per_token = _difference(old, new, "nll")
    return {
        "perplexity": _scaled(per_token, math.exp(nll / tokens)),
        "bits_per_byte": _scaled(per_token, tokens / (size_bytes * math.log(2))),
    }


def _pair_divergences(before: Record, after: Record) -> dict[str, PairedChange]:
    old, new = before.items, after.items
    if not _equal(old, new, "domain", "tokens", "document"):
        return {}
    return {
        "kld_mean": _difference(old, new, "kld"),
        "top1_agreement": _difference(old, new, "same_top"),
    }


def _difference(old: Items, new: Items, name: str) -> PairedChange:
    """How sure the change of a mean per token is; windows of one document belong together."""
    from ewq.stats import (
        clustered_ratio,
        clusters_of,
        smallest_detectable_difference,
        two_sided_p,
    )

    estimate = clustered_ratio(
        [after - before for before, after in zip(old.column(name), new.column(name), strict=True)],
        new.column("tokens"),
        clusters_of(new.column("document")),
    )
    if estimate.stderr is None:
        return PairedChange(None, None, None)
    freedom = estimate.clusters - 1
    p_value = two_sided_p(estimate.value, estimate.stderr, freedom)
    detectable = smallest_detectable_difference(estimate.stderr, df=freedom)
    return PairedChange(estimate.stderr, p_value, detectable)


def _scaled(change: PairedChange, scale: float) -> PairedChange:
    if change.stderr is None or change.detectable is None:
        return change
    return PairedChange(change.stderr * scale, change.p_value, change.detectable * scale)


def _equal(old: Items, new: Items, *names: str) -> bool:
    return all(list(old.column(name)) == list(new.column(name)) for name in names)


_PAIRINGS: dict[str, Callable[[Record, Record], dict[str, PairedChange]]] = {
    "mmlu": _pair_answers,
    "mmlu_cloze": _pair_answers,
    "perplexity": _pair_windows,
    "divergence": _pair_divergences,
}
