"""Scorers, one number per weight or block, and the rules that make precisions of the numbers.

The higher a score, the more bits it deserves. ``histogram`` and ``softmax`` are entropies, the
rest rivals to judge them by; ``random``, ``first`` and ``last`` never look at values.

The budget rule ranks units by score. Of all splits of the ranking into 4-bit, 8-bit and raw the
largest that fits is taken; then single units are raised, best score first, while they still fit.
"""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ewq.entropy import WeightStatistics
from ewq.errors import PlanError
from ewq.variants import Precision

DEFAULT_SCORER = "histogram"
RISING = (Precision.FOUR_BIT, Precision.EIGHT_BIT, Precision.RAW)


@dataclass(frozen=True)
class Unit:
    """What gets one precision: a block (or one weight) and the statistics of its weights."""

    names: Sequence[str]
    statistics: Sequence[WeightStatistics]
    nf4_errors: Sequence[float] = ()
    """``|W - NF4(W)| / |W|`` of each weight; measured for ``nf4-error`` only."""


Score = Callable[[Sequence[Unit], int], list[float]]
"""``score(units, seed)``: one value per unit, in order."""


def weighted_mean(unit: Unit, values: Iterable[float]) -> float:
    """Mean of one value per weight of the unit, weighted by parameters."""
    numels = [weight.numel for weight in unit.statistics]
    return sum(value * n for value, n in zip(values, numels, strict=True)) / sum(numels)


def _mean_of(name: str, sign: float = 1.0) -> Score:
    return lambda units, _: [
        sign * weighted_mean(unit, [getattr(weight, name) for weight in unit.statistics])
        for unit in units
    ]


def _random(units: Sequence[Unit], seed: int) -> list[float]:
    source = random.Random(seed)
    return [source.random() for _ in units]


SCORERS: Mapping[str, Score] = {
    "histogram": _mean_of("histogram_entropy"),
    "softmax": _mean_of("softmax_entropy"),
    "variance": _mean_of("variance"),
    "kurtosis": _mean_of("kurtosis"),
    "nf4-error": lambda units, _: [weighted_mean(unit, unit.nf4_errors) for unit in units],
    "random": _random,
    "reverse": _mean_of("histogram_entropy", sign=-1.0),
    "first": lambda units, _: [-float(index) for index in range(len(units))],
    "last": lambda units, _: [float(index) for index in range(len(units))],
}
"""``reverse`` is the default turned round; ``first`` and ``last`` keep the ends precise."""


def spread(scores: Sequence[float]) -> tuple[float, float]:
    """Mean and population standard deviation of the units' scores, each unit counting once.

    Taken from the first score, so that equal scores have exactly that mean and no spread.
    """
    origin = scores[0]
    shift = math.fsum(score - origin for score in scores) / len(scores)
    square = math.fsum((score - origin - shift) ** 2 for score in scores) / len(scores)
    return origin + shift, math.sqrt(square)


def factor_thresholds(mean: float, std: float, factor: float) -> dict[str, float]:
    """Least score for ``raw`` and for ``8bit``: ``mean`` and ``mean - factor * std``."""
    if not math.isfinite(factor) or factor < 0:
        raise PlanError(f"invalid factor {factor}: expected a number of 0 or more, such as 0.65")
    return {"raw": mean, "8bit": mean - factor * std}


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
    Where even the smallest plan is larger, a PlanError names the feasible range.
    """
    order = sorted(range(len(scores)), key=lambda unit: (scores[unit], -unit))
    room = target_bytes - fixed_bytes
    split = _best_split([sizes[unit] for unit in order], room)
    if split is None:
        low, high = (fixed_bytes + sum(end(of.values()) for of in sizes) for end in (min, max))
        raise out_of_reach(target_bytes, low, high, numel)
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


def out_of_reach(target: int, low: int, high: int, numel: int) -> PlanError:
    """What a budget of bytes is told that no plan of a model of ``numel`` parameters meets."""
    return PlanError(
        f"a target of {target} bytes ({8 * target / numel:.3f} bits per weight) is out of reach: "
        f"this model takes {low} to {high} bytes "
        f"({8 * low / numel:.3f} to {8 * high / numel:.3f} bits per weight)"
    )
