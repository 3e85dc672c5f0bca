"""Scorers: one number per weight or block; the higher, the more bits it deserves.

``histogram`` and ``softmax`` are entropies, the rest rivals to judge them by.
The controls look at positions only, never at values.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ewq.entropy.statistics import WeightStatistics
from ewq.errors import InputError

DEFAULT_SCORER = "histogram"


@dataclass(frozen=True)
class Unit:
    """What gets one precision: a block (or one weight) and the statistics of its weights."""

    names: Sequence[str]
    statistics: Sequence[WeightStatistics]
    nf4_errors: Sequence[float] = ()
    """``|W - NF4(W)| / |W|`` of each weight; measured for ``NEED_NF4_ERRORS`` only."""

    @property
    def numel(self) -> int:
        """Weights in the unit."""
        return sum(weight.numel for weight in self.statistics)


Score = Callable[[Sequence[Unit], int], list[float]]
"""``score(units, seed)``: one value per unit, in order."""


def weighted_mean(unit: Unit, values: Iterable[float]) -> float:
    """Mean of one value per weight of the unit, weighted by parameters."""
    pairs = zip(unit.statistics, values, strict=True)
    return sum(value * weight.numel for weight, value in pairs) / unit.numel


def _mean_of(name: str, sign: float = 1.0) -> Score:
    def score(units: Sequence[Unit], seed: int) -> list[float]:
        del seed
        return [
            sign * weighted_mean(unit, [getattr(weight, name) for weight in unit.statistics])
            for unit in units
        ]

    return score


def _nf4_error(units: Sequence[Unit], seed: int) -> list[float]:
    del seed
    return [weighted_mean(unit, unit.nf4_errors) for unit in units]


def _random(units: Sequence[Unit], seed: int) -> list[float]:
    source = random.Random(seed)
    return [source.random() for _ in units]


def _last(units: Sequence[Unit], seed: int) -> list[float]:
    del seed
    return [float(index) for index in range(len(units))]


def _first(units: Sequence[Unit], seed: int) -> list[float]:
    return [-score for score in _last(units, seed)]


SCORERS: Mapping[str, Score] = {
    "histogram": _mean_of("histogram_entropy"),
    "softmax": _mean_of("softmax_entropy"),
    "variance": _mean_of("variance"),
    "kurtosis": _mean_of("kurtosis"),
    "nf4-error": _nf4_error,
    "random": _random,
    "reverse": _mean_of("histogram_entropy", sign=-1.0),
    "first": _first,
    "last": _last,
}
"""``reverse`` is the default turned round; ``first`` and ``last`` keep the ends precise."""
NEED_NF4_ERRORS = frozenset({"nf4-error"})
"""Scorers that look at rounding errors, which take a pass of their own."""


def check_scorer(name: str) -> None:
    """Make sure there is such a scorer.

    Raises:
        InputError: there is none.
    """
    if name not in SCORERS:
        raise InputError(f"unknown scorer {name!r}; known: {', '.join(SCORERS)}")


def score_units(name: str, units: Sequence[Unit], seed: int = 0) -> list[float]:
    """Scores of all units, in order.

    Raises:
        InputError: no such scorer.
    """
    check_scorer(name)
    return SCORERS[name](units, seed)
