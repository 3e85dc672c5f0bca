import pytest
from hypothesis import given
from hypothesis import strategies as st

from ewq.report.sections.against_size import SizedPoint, pareto_front


def front(candidates):
    """``(size, badness, name)`` of the candidates on the front."""
    points = [SizedPoint(name, size, value, value, value) for size, value, name in candidates]
    kept = pareto_front(points, higher_is_better=False)
    return [(point.size, point.value, point.variant) for point in kept]


POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.text("ab", max_size=2)))


@pytest.mark.parametrize(
    ("candidates", "names"),
    [
        pytest.param([], "", id="none"),
        pytest.param([(1, 1, "a")], "a", id="one"),
        pytest.param([(1, 2, "a"), (2, 1, "b")], "ab", id="a trade"),
        pytest.param([(1, 1, "a"), (2, 2, "b")], "a", id="beaten in both"),
        pytest.param([(1, 1, "a"), (1, 2, "b")], "a", id="same size, worse"),
        pytest.param([(1, 1, "a"), (2, 1, "b")], "a", id="same quality, larger"),
        pytest.param([(1, 1, "b"), (1, 1, "a")], "ab", id="equal twins"),
    ],
)
def test_front(candidates, names):
    assert "".join(name for *_, name in front(candidates)) == names


def test_where_more_is_better_the_front_is_of_the_highest():
    points = [SizedPoint("a", 1, 5, 5, 5), SizedPoint("b", 2, 4, 4, 4), SizedPoint("c", 3, 6, 6, 6)]
    front_names = [each.variant for each in pareto_front(points, higher_is_better=True)]
    assert front_names == ["a", "c"]


@given(POINTS)
def test_front_is_exactly_the_candidates_that_none_beats(candidates):
    def beaten(c):
        return any(o[0] <= c[0] and o[1] <= c[1] and o[:2] != c[:2] for o in candidates)

    assert front(candidates) == sorted(c for c in candidates if not beaten(c))
