from __future__ import annotations

from dataclasses import replace

import pytest

from ewq.entropy import WeightStatistics
from ewq.errors import InputError
from ewq.planning.analysis import check_choices
from ewq.planning.scorers import SCORERS, Unit

PLAIN = WeightStatistics(
    numel=100,
    minimum=-1.0,
    maximum=1.0,
    mean=0.0,
    variance=0.5,
    kurtosis=3.0,
    histogram_entropy=6.0,
    softmax_entropy=4.0,
)
RICH = replace(
    PLAIN,
    numel=300,
    histogram_entropy=7.0,
    softmax_entropy=5.0,
    variance=0.9,
    kurtosis=7.0,
)
UNITS = [
    Unit(("a", "b"), (PLAIN, RICH), (0.1, 0.3)),
    Unit(("a",), (PLAIN,), (0.1,)),
    Unit(("b",), (RICH,), (0.3,)),
]
EXPECTED = {
    "histogram": [6.75, 6.0, 7.0],
    "softmax": [4.75, 4.0, 5.0],
    "variance": [0.8, 0.5, 0.9],
    "kurtosis": [6.0, 3.0, 7.0],
    "nf4-error": [0.25, 0.1, 0.3],
    "reverse": [-6.75, -6.0, -7.0],
    "first": [0.0, -1.0, -2.0],
    "last": [0.0, 1.0, 2.0],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_scores_are_parameter_weighted_means(name: str):
    assert SCORERS[name](UNITS, 0) == pytest.approx(EXPECTED[name])


def test_every_scorer_is_tested():
    assert set(SCORERS) == {*EXPECTED, "random"}


def test_random_follows_its_seed_and_not_the_weights():
    assert SCORERS["random"](UNITS, 1) == SCORERS["random"](UNITS[::-1], 1)
    assert SCORERS["random"](UNITS, 1) != SCORERS["random"](UNITS, 2)


def test_an_unknown_scorer_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"unknown scorer 'entropy'; known: histogram, softmax"):
        check_choices("entropy", "block", "nf4")
