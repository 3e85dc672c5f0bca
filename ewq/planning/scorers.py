"""Scorers: one number per weight or block; the higher, the more bits it deserves.

``histogram`` and ``softmax`` are entropies, the rest rivals to judge them by; ``random``,
``first`` and ``last`` never look at values.
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
NEED_NF4_ERRORS = frozenset({"nf4-error"})
"""Scorers that look at rounding errors, which take a pass of their own."""


def check_scorer(name: str) -> None:
    """Raise an InputError where there is no such scorer."""
    if name not in SCORERS:
        raise InputError(f"unknown scorer {name!r}; known: {', '.join(SCORERS)}")


def score_units(name: str, units: Sequence[Unit], seed: int = 0) -> list[float]:
    """Scores of all units, in order."""
    check_scorer(name)
    return SCORERS[name](units, seed)
