"""Item by item comparison of two stored records: what both runs share cancels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ewq.record import Record

Rows = Sequence[Sequence[Any]]


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
    if pair is None or not before.items or not after.items:
        return {}
    return pair(before, after)


def _pair_answers(before: Record, after: Record) -> dict[str, PairedChange]:
    """Items hold one letter a question, upper case where it is right."""
    from ewq.stats import paired_accuracy

    old, new = str(before.items), str(after.items)
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
    """Items are ``[domain, nll in nats, tokens, bytes, document]`` of each window."""
    old, new = cast(Rows, before.items), cast(Rows, after.items)
    if _columns(old, 0, 2, 3, 4) != _columns(new, 0, 2, 3, 4):
        return {}
    nll, tokens, size_bytes = (sum(row[column] for row in new) for column in (1, 2, 3))
    per_token = _difference(old, new, column=1, size_column=2, document_column=4)
    return {
        "perplexity": _scaled(per_token, math.exp(nll / tokens)),
        "bits_per_byte": _scaled(per_token, tokens / (size_bytes * math.log(2))),
    }


def _pair_divergences(before: Record, after: Record) -> dict[str, PairedChange]:
    """Items are ``[domain, tokens, sum KLD, same top, sum dp^2, nll change, document]``."""
    old, new = cast(Rows, before.items), cast(Rows, after.items)
    if _columns(old, 0, 1, 6) != _columns(new, 0, 1, 6):
        return {}
    return {
        metric: _difference(old, new, column=column, size_column=1, document_column=6)
        for metric, column in (("kld_mean", 2), ("top1_agreement", 3))
    }


def _difference(
    old: Rows, new: Rows, *, column: int, size_column: int, document_column: int
) -> PairedChange:
    """How sure the change of a mean per token is; windows of one document belong together."""
    from ewq.stats import (
        clustered_ratio,
        clusters_of,
        smallest_detectable_difference,
        two_sided_p,
    )

    estimate = clustered_ratio(
        [after[column] - before[column] for before, after in zip(old, new, strict=True)],
        [row[size_column] for row in new],
        clusters_of([row[document_column] for row in new]),
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


def _columns(rows: Rows, *columns: int) -> list[tuple[Any, ...]]:
    return [tuple(row[column] for column in columns) for row in rows]


_PAIRINGS: dict[str, Callable[[Record, Record], dict[str, PairedChange]]] = {
    "mmlu": _pair_answers,
    "mmlu_cloze": _pair_answers,
    "perplexity": _pair_windows,
    "divergence": _pair_divergences,
}
