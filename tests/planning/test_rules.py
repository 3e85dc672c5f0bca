from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ewq.errors import PlanError
from ewq.planning.scorers import by_thresholds, factor_thresholds, spread
from ewq.variants import Precision

SCORES = st.lists(st.floats(-20, 20), min_size=1, max_size=40)
RISING = (Precision.FOUR_BIT, Precision.EIGHT_BIT, Precision.RAW)


def test_the_rule_as_written():
    scores = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]  # mean 5, population std 2

    thresholds = factor_thresholds(*spread(scores), 0.5)

    assert thresholds == {"raw": 5.0, "8bit": 4.0}
    assert [of.value for of in by_thresholds(scores, thresholds)] == [
        "4bit", "8bit", "8bit", "8bit", "raw", "raw", "raw", "raw",
    ]  # fmt: skip


@given(score=st.floats(-20, 20), count=st.integers(1, 60), factor=st.floats(0, 3))
def test_equal_scores_all_stay_raw(score: float, count: int, factor: float):
    of = spread([score] * count)

    assert of == (score, 0.0)
    assert set(by_thresholds([score] * count, factor_thresholds(*of, factor))) == {Precision.RAW}


@given(scores=SCORES, low=st.floats(0, 2), more=st.floats(0, 2))
def test_a_larger_factor_never_takes_bits_away(scores: list[float], low: float, more: float):
    of = spread(scores)
    one = by_thresholds(scores, factor_thresholds(*of, low))
    other = by_thresholds(scores, factor_thresholds(*of, low + more))

    assert all(RISING.index(a) <= RISING.index(b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("factor", [-0.1, math.nan, math.inf])
def test_an_impossible_factor_is_refused(factor: float):
    with pytest.raises(PlanError, match=r"invalid factor .*expected"):
        factor_thresholds(*spread([1.0, 2.0]), factor)
