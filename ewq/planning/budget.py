"""The budget rule: the largest plan that does not exceed a size.

Units are ranked by score. Every split of the ranking into 4-bit, 8-bit and
raw is weighed and the largest that fits is taken; then single units are
raised, best score first, while they still fit. With units of equal size the
result is the largest of all possible plans; otherwise no unit can be raised
without exceeding the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from ewq.errors import PlanError
from ewq.precision import Precision

RISING = (Precision.FOUR_BIT, Precision.EIGHT_BIT, Precision.RAW)


def within_budget(
    scores: Sequence[float],
    sizes: Sequence[Mapping[Precision, int]],
    fixed_bytes: int,
    target_bytes: int,
    numel: int,
) -> list[Precision]:
    """A precision per unit whose total with ``fixed_bytes`` is at most ``target_bytes``.

    ``sizes`` are the bytes of each unit at each precision.

    Raises:
        PlanError: even the smallest plan is larger; the message has the feasible range.
    """
    order = sorted(range(len(scores)), key=lambda unit: (scores[unit], -unit))
    room = target_bytes - fixed_bytes
    split = _best_split([sizes[unit] for unit in order], room)
    if split is None:
        raise PlanError(_infeasible(sizes, fixed_bytes, target_bytes, numel))
    four, eight = split
    precisions = [Precision.RAW] * len(scores)
    for rank, unit in enumerate(order[:eight]):
        precisions[unit] = Precision.FOUR_BIT if rank < four else Precision.EIGHT_BIT
    _raise_singly(precisions, order, sizes, room)
    return precisions


def _best_split(ranked: Sequence[Mapping[Precision, int]], room: int) -> tuple[int, int] | None:
    """``(i, j)``: the first ``i`` units at 4 bits, up to ``j`` at 8 bits, the rest raw."""
    sums = {
        precision: list(accumulate((size[precision] for size in ranked), initial=0))
        for precision in RISING
    }
    best: tuple[int, int, int] | None = None
    for four in range(len(ranked) + 1):
        for eight in range(four, len(ranked) + 1):
            total = (
                sums[Precision.FOUR_BIT][four]
                + sums[Precision.EIGHT_BIT][eight]
                - sums[Precision.EIGHT_BIT][four]
                + sums[Precision.RAW][-1]
                - sums[Precision.RAW][eight]
            )
            # Of equal sizes the one with fewest units at 4 bits comes first and stays.
            if total <= room and (best is None or total > best[0]):
                best = (total, four, eight)
    return None if best is None else best[1:]


def _raise_singly(
    precisions: list[Precision],
    order: Sequence[int],
    sizes: Sequence[Mapping[Precision, int]],
    room: int,
) -> None:
    left = room - sum(size[of] for size, of in zip(sizes, precisions, strict=True))
    for unit in reversed(order):
        for precision in RISING[RISING.index(precisions[unit]) + 1 :]:
            cost = sizes[unit][precision] - sizes[unit][precisions[unit]]
            if 0 < cost <= left:
                left -= cost
                precisions[unit] = precision


def _infeasible(
    sizes: Sequence[Mapping[Precision, int]], fixed: int, target: int, numel: int
) -> str:
    low = fixed + sum(min(size.values()) for size in sizes)
    high = fixed + sum(max(size.values()) for size in sizes)
    return (
        f"the target of {target} bytes ({8 * target / numel:.3f} bits per weight) is below "
        f"what this model can reach: {low} to {high} bytes "
        f"({8 * low / numel:.3f} to {8 * high / numel:.3f} bits per weight)"
    )
