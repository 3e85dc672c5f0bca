"""Which rows go through the model together.

Composition is a pure function of the lengths, so that every variant of a model
and every repetition sees the same batches: in half precision a different
composition alone can move single answers.
"""

from __future__ import annotations

from collections.abc import Sequence


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


def plan_batches(
    lengths: Sequence[int], shared: int, budget: int, kept: Sequence[int], kept_limit: int
) -> list[tuple[int, ...]]:
    """Group rows of similar length under two limits; a row that exceeds one alone stands alone.

    Args:
        lengths: tokens of each row.
        shared: tokens that every row holds in its cache beforehand.
        budget: most tokens of a padded batch, shared ones included.
        kept: positions of each row whose logits are needed.
        kept_limit: most such positions in a batch.

    Returns:
        Row indices, batch by batch, longest rows first (what does not fit in
        memory fails at once); every index once.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    kept_now = 0
    for index in order:
        width = shared + (lengths[batches[-1][0]] if batches else 0)
        fits = (
            bool(batches)
            and (len(batches[-1]) + 1) * width <= budget
            and kept_now + kept[index] <= kept_limit
        )
        if fits:
            batches[-1].append(index)
            kept_now += kept[index]
        else:
            batches.append([index])
            kept_now = kept[index]
    return [tuple(batch) for batch in batches]
