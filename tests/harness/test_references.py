"""What makes a comparison with the reference doubtful."""

from types import SimpleNamespace

import pytest

from ewq.harness.references import BEFORE_INTERRUPTION, References
from ewq.measurement import DoubtKind, TaskResult


def speed(mode):
    return TaskResult("throughput", {}, {}, side={"decode_mode": mode} if mode else {})


@pytest.fixture
def references():
    return References(SimpleNamespace(key=lambda task: task))


@pytest.mark.parametrize(
    ("reference", "variant", "doubted"),
    [("graph", "static", True), ("graph", "graph", False), ("graph", None, False)],
    ids=["another way", "the same", "another engine"],
)
def test_two_ways_of_decoding_are_not_compared_silently(references, reference, variant, doubted):
    references.remember("throughput", speed(reference))
    doubts = references.doubts("throughput", speed(variant))
    assert [doubt.kind for doubt in doubts] == [DoubtKind.DECODE_MODE] * doubted
    if doubted:
        assert doubts[0].text.startswith("decoded by static, the reference by graph")


def test_a_reference_from_before_an_interruption_and_none_at_all(references):
    assert references.doubts("throughput", speed("graph")) == ()
    references.remember("throughput", speed("graph"))
    references.replayed.add("throughput")
    assert references.doubts("throughput", speed("graph")) == (BEFORE_INTERRUPTION,)
