"""Scorers: one number per weight or block; the higher, the more bits it deserves.

``histogram`` and ``softmax`` are entropies, the rest rivals to judge them by.
The controls look at positions only, never at values.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ewq.entropy.statistics import WeightStatistics
from ewq.errors import InputError

DEFAULT_SCORER = "histogram"


@dataclass(frozen=True)
class Unit:
    """What gets one precision: a block (or one weight) and the statistics of its weights."""

    statistics: Sequence[WeightStatistics]

    @property
    def numel(self) -> int:
        """Weights in the unit."""
        return sum(of.numel for of in self.statistics)


Score = Callable[[Sequence[Unit], int], list[float]]
"""``score(units, seed)``: one value per unit, in order."""


def weighted_mean(unit: Unit, value: Callable[[WeightStatistics], float]) -> float:
    """Parameter-weighted mean of a statistic over the unit's weights."""
    return sum(value(of) * of.numel for of in unit.statistics) / unit.numel


def _mean_of(name: str, sign: float = 1.0) -> Score:
    def score(units: Sequence[Unit], seed: int) -> list[float]:
        del seed
        return [sign * weighted_mean(unit, lambda of: float(getattr(of, name))) for unit in units]

    return score


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
    "nf4-error": _mean_of("nf4_error"),
    "random": _random,
    "reverse": _mean_of("histogram_entropy", sign=-1.0),
    "first": _first,
    "last": _last,
}
"""``reverse`` is the default turned round; ``first`` and ``last`` keep the ends precise."""


def check_scorer(name: str) -> None:
    """Make sure there is such a scorer.

    Raises:
        InputError: there is none.
    """
    if name not in SCORERS:
        raise InputError(f"no scorer {name!r}; there are: {', '.join(SCORERS)}")


def score_units(name: str, units: Sequence[Unit], seed: int = 0) -> list[float]:
    """Scores of all units, in order.

    Raises:
        InputError: no such scorer.
    """
    check_scorer(name)
    return SCORERS[name](units, seed)
