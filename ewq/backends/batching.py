"""Which rows go through the model together.

Composition is a pure function of the lengths, so that every variant of a model
and every repetition sees the same batches: in half precision a different
composition alone can move single answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

FILLED_TOKENS = 512
"""Tokens from which on a larger batch gains less than padding its rows would cost."""
PADDING_SHARE = 0.1
"""Most padding in a batch that has that many tokens."""


def split_shared(
    prefix: Sequence[int], suffixes: Sequence[Sequence[int]]
) -> tuple[list[int], list[list[int]]]:
    """Split sequences into what is computed once and what each row adds.

    The last token of the prefix goes to the rows, so that each row predicts its
    own first token and a suffix may be empty.

    Returns:
        ``(shared, rows)`` with ``shared + rows[i] == prefix + suffixes[i]``.
    """
    shared, joint = list(prefix[:-1]), list(prefix[-1:])
    return shared, [joint + list(suffix) for suffix in suffixes]


@dataclass(frozen=True)
class Limits:
    """What a batch may hold; a row that exceeds a limit alone stands alone."""

    shared: int
    """Tokens that every row holds in its cache beforehand."""
    tokens: int
    """Most tokens of a padded batch, shared ones included."""
    kept: int
    """Most positions whose logits are needed."""


@dataclass
class _Batch:
    width: int
    rows: list[int] = field(default_factory=list)
    real: int = 0
    kept: int = 0

    def add(self, index: int, length: int, kept: int) -> None:
        self.rows.append(index)
        self.real += length
        self.kept += kept

    def has_room(self, length: int, kept: int, limits: Limits) -> bool:
        rows = len(self.rows) + 1
        padded = rows * self.width
        padding = padded - self.real - length
        return (
            padded + rows * limits.shared <= limits.tokens
            and self.kept + kept <= limits.kept
            and (padded <= FILLED_TOKENS or padding <= PADDING_SHARE * padded)
        )


def plan_batches(
    lengths: Sequence[int], kept: Sequence[int], limits: Limits
) -> list[tuple[int, ...]]:
    """Group rows of similar length within limits.

    Args:
        lengths: tokens of each row.
        kept: positions of each row whose logits are needed.
        limits: what a batch may hold.

    Returns:
        Row indices, batch by batch, longest rows first (what does not fit in
        memory fails at once); every index once.
    """
    batches: list[_Batch] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or not batches[-1].has_room(lengths[index], kept[index], limits):
            batches.append(_Batch(width=lengths[index]))
        batches[-1].add(index, lengths[index], kept[index])
    return [tuple(batch.rows) for batch in batches]
