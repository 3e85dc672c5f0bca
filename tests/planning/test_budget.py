from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ewq.errors import PlanError
from ewq.planning.scorers import within_budget
from ewq.variants import Precision

RISING = (Precision.FOUR_BIT, Precision.EIGHT_BIT, Precision.RAW)


def equal_sizes(count: int, four: int = 45, eight: int = 80, raw: int = 160):
    return [dict(zip(RISING, (four, eight, raw), strict=True))] * count


def total(sizes, precisions) -> int:
    return sum(size[of] for size, of in zip(sizes, precisions, strict=True))


@st.composite
def unequal_sizes(draw: st.DrawFn):
    sizes = []
    for _ in range(draw(st.integers(1, 7))):
        four = draw(st.integers(1, 50))
        eight = four + draw(st.integers(1, 50))
        sizes.append(
            dict(zip(RISING, (four, eight, eight + draw(st.integers(1, 90))), strict=True))
        )
    return sizes


@given(
    count=st.integers(1, 6),
    scores=st.lists(st.integers(0, 5).map(float), min_size=6, max_size=6),
    room=st.integers(0, 1100),
)
def test_equal_blocks_give_the_largest_of_all_plans_that_fit(count, scores, room):
    sizes = equal_sizes(count)
    fitting = [total(sizes, of) for of in product(RISING, repeat=count) if total(sizes, of) <= room]

    if not fitting:
        with pytest.raises(PlanError):
            within_budget(scores[:count], sizes, 7, room + 7, 1000)
        return
    chosen = within_budget(scores[:count], sizes, 7, room + 7, 1000)
    assert total(sizes, chosen) == max(fitting)


@given(sizes=unequal_sizes(), data=st.data())
def test_unequal_blocks_never_exceed_and_leave_no_room_for_a_raise(sizes, data):
    scores = data.draw(
        st.lists(st.floats(0, 9), min_size=len(sizes), max_size=len(sizes)), label="scores"
    )
    least = sum(size[Precision.FOUR_BIT] for size in sizes)
    room = data.draw(st.integers(least, least + 600), label="room")

    chosen = within_budget(scores, sizes, 0, room, 1000)

    spent = total(sizes, chosen)
    assert spent <= room
    for size, of in zip(sizes, chosen, strict=True):
        for higher in RISING[RISING.index(of) + 1 :]:
            assert spent + size[higher] - size[of] > room


@given(scores=st.permutations(range(8)), room=st.integers(8 * 45, 8 * 160))
def test_equal_blocks_keep_the_order_of_scores(scores, room):
    chosen = within_budget([float(of) for of in scores], equal_sizes(8), 0, room, 1000)

    by_score = [of for _, of in sorted(zip(scores, chosen, strict=True))]
    assert by_score == sorted(by_score, key=RISING.index)


def test_room_left_by_the_ranking_is_used_to_the_last_byte():
    low = dict(zip(RISING, (10, 11, 50), strict=True))
    high = dict(zip(RISING, (10, 20, 100), strict=True))

    chosen = within_budget([1.0, 2.0], [low, high], 0, 21, 100)

    assert chosen == [Precision.EIGHT_BIT, Precision.FOUR_BIT]


def test_a_target_above_everything_keeps_all_raw():
    assert within_budget([1.0, 2.0], equal_sizes(2), 10, 10**9, 100) == [Precision.RAW] * 2


def test_an_impossible_target_is_refused_with_the_feasible_range():
    with pytest.raises(PlanError, match=r"target of 99 bytes .*100 to 330 bytes .*8\.000 to 26\.4"):
        within_budget([1.0, 2.0], equal_sizes(2), 10, 99, 100)


def test_a_format_whose_8_bits_weigh_more_than_raw_is_still_within_budget():
    # An FP8 checkpoint: raw is 80, int8 with its scales 81.
    sizes = equal_sizes(3, four=45, eight=81, raw=80)

    assert within_budget([1.0, 2.0, 3.0], sizes, 0, 240, 100) == [Precision.RAW] * 3
