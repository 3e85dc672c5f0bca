"""From scores to precisions: by distance below their mean, or within a budget of bytes.

The budget rule ranks units by score. Of all splits of the ranking into 4-bit, 8-bit and raw the
largest that fits is taken; then single units are raised, best score first, while they still fit.
With units of equal size the result is the largest of all possible plans; otherwise no unit can be
raised without exceeding the target.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ewq.errors import PlanError
from ewq.precision import Precision

RISING = (Precision.FOUR_BIT, Precision.EIGHT_BIT, Precision.RAW)


@dataclass(frozen=True)
class Spread:
    """Mean and population standard deviation of the units' scores, each unit counting once."""

    mean: float
    std: float


def spread(scores: Sequence[float]) -> Spread:
    """Taken from the first score, so that equal scores have exactly that mean and no spread."""
    origin = scores[0]
    shift = math.fsum(score - origin for score in scores) / len(scores)
    square = math.fsum((score - origin - shift) ** 2 for score in scores) / len(scores)
    return Spread(origin + shift, math.sqrt(square))


def factor_thresholds(scores: Spread, factor: float) -> dict[str, float]:
    """Least score for ``raw`` and for ``8bit``: ``mean`` and ``mean - factor * std``.

    Raises:
        PlanError: the factor is negative or not a number.
    """
    if not math.isfinite(factor) or factor < 0:
        raise PlanError(f"invalid factor {factor}: expected a number of 0 or more, such as 0.65")
    return {"raw": scores.mean, "8bit": scores.mean - factor * scores.std}


def by_thresholds(scores: Sequence[float], thresholds: Mapping[str, float]) -> list[Precision]:
    """``raw`` from its threshold up, ``8bit`` from its own up, else ``4bit``."""
    rising = thresholds["8bit"], thresholds["raw"]
    return [RISING[sum(score >= least for least in rising)] for score in scores]


def within_budget(
    scores: Sequence[float],
    sizes: Sequence[Mapping[Precision, int]],
    fixed_bytes: int,
    target_bytes: int,
    numel: int,
) -> list[Precision]:
    """A precision per unit whose total with ``fixed_bytes`` is at most ``target_bytes``.

    ``sizes`` are the bytes of each unit at each precision, ``numel`` all parameters of the model.

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
    four, eight, raw = (np.cumsum([0, *(size[of] for size in ranked)]) for of in RISING)
    totals = (four - eight)[:, None] + (eight + raw[-1] - raw)
    fits = np.triu(totals <= room)
    if not fits.any():
        return None
    # Of equal sizes the one with fewest units at 4 bits comes first.
    first, second = divmod(int(np.where(fits, totals, -1).argmax()), len(raw))
    return first, second


def _raise_singly(
    precisions: list[Precision],
    order: Sequence[int],
    sizes: Sequence[Mapping[Precision, int]],
    room: int,
) -> None:
    left = room - sum(size[at] for size, at in zip(sizes, precisions, strict=True))
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
        f"a target of {target} bytes ({8 * target / numel:.3f} bits per weight) is out of reach: "
        f"this model takes {low} to {high} bytes "
        f"({8 * low / numel:.3f} to {8 * high / numel:.3f} bits per weight)"
    )
