from dataclasses import replace

import pytest

from ewq.gating.compare import compare_runs
from ewq.gating.thresholds import Thresholds, Tolerance
from ewq.measurement import Metric
from ewq.record import Verdict
from ewq.storage.runs import read_run
from tests.make_runs import GPU, THROTTLED, answers, metric, mmlu, record, stored_run


def speed(value, **changes):
    metrics = {"decode_tokens_per_s": metric(value, stderr=0.5, n=5, unit="tokens/s")}
    return record("throughput", metrics=metrics, **changes)


def size(value, **changes):
    metrics = {"weights_bytes": metric(value, n=1, better=False, unit="bytes")}
    return record("memory", metrics=metrics, **changes)


@pytest.fixture
def compare(tmp_path):
    def run(before, after, thresholds=None, **after_session):
        runs = (
            read_run(stored_run(tmp_path, before, number=1, day=1)),
            read_run(stored_run(tmp_path, after, number=2, day=2, **after_session)),
        )
        return compare_runs(*runs, *([thresholds] if thresholds else []))

    return run


SPEED_AND_SIZE = [speed(100), size(1000)]
LOST = {"selected": [["ewq-0.65", "throughput"], ["ewq-0.65", "memory"]], "complete": False}

# before, after, keywords of the later run, exit code, verdict
CASES = {
    "the same": (SPEED_AND_SIZE, SPEED_AND_SIZE, {}, 0, Verdict.PASS),
    "slower": (SPEED_AND_SIZE, [speed(80), size(1000)], {}, 1, Verdict.FAIL),
    "bigger": (SPEED_AND_SIZE, [speed(100), size(1100)], {}, 1, Verdict.FAIL),
    "faster": (SPEED_AND_SIZE, [speed(120), size(1000)], {}, 0, Verdict.IMPROVED),
    "throttled": (
        SPEED_AND_SIZE,
        [speed(80, doubts=THROTTLED), size(1000)],
        {},
        0,
        Verdict.INCONCLUSIVE,
    ),
    "fewer answers right": (
        [mmlu(answers(140, 60))],
        [mmlu(answers(120, 80))],
        {},
        1,
        Verdict.FAIL,
    ),
    "another GPU": (
        SPEED_AND_SIZE,
        [speed(80), size(1100)],
        {"machine": GPU | {"gpu": "L4"}},
        2,
        Verdict.NO_BASELINE,
    ),
    "another model": (
        [size(1000)],
        [size(2000, fingerprint="sha256:2")],
        {},
        2,
        Verdict.NO_BASELINE,
    ),
    "other settings": (
        [size(1000)],
        [size(2000, settings={"shots": 0})],
        {},
        2,
        Verdict.NO_BASELINE,
    ),
    "nothing in common": ([size(1000)], [speed(100)], {}, 2, Verdict.NO_BASELINE),
    "a regression beside something not comparable": (
        SPEED_AND_SIZE,
        [speed(80), size(1000, settings={"shots": 0})],
        {},
        1,
        Verdict.FAIL,
    ),
    "a variant more than before": (
        SPEED_AND_SIZE,
        [*SPEED_AND_SIZE, size(1, variant="fp16")],
        {},
        0,
        Verdict.PASS,
    ),
    "a selection of what was measured before": (SPEED_AND_SIZE, [speed(100)], {}, 0, Verdict.PASS),
    "selected and lost": (SPEED_AND_SIZE, [speed(100)], {"session": LOST}, 1, Verdict.FAIL),
    "selected and lost, on another GPU": (
        SPEED_AND_SIZE,
        [speed(100)],
        {"session": LOST, "machine": GPU | {"gpu": "L4"}},
        2,
        Verdict.NO_BASELINE,
    ),
    "a gated metric is gone": (
        [size(1000)],
        [record("memory", metrics={"load_s": metric(1)})],
        {},
        1,
        Verdict.FAIL,
    ),
}


@pytest.mark.parametrize(
    ("before", "after", "changes", "exit_code", "verdict"), CASES.values(), ids=CASES.keys()
)
def test_exit_code_and_verdict(compare, before, after, changes, exit_code, verdict):
    comparison = compare(before, after, **changes)

    assert (comparison.exit_code, comparison.verdict) == (exit_code, verdict)


def test_tolerances_of_a_thresholds_file_apply(compare):
    wide = Thresholds(tolerance={"memory": {"weights_bytes": Tolerance(relative=0.5)}})

    assert compare([size(1000)], [size(1100)]).exit_code == 1
    assert compare([size(1000)], [size(1100)], wide).exit_code == 0


@pytest.mark.parametrize(("freedom", "verdict"), [(None, Verdict.FAIL), (2, Verdict.INCONCLUSIVE)])
def test_a_change_that_rests_on_few_texts_needs_more_to_be_certain(compare, freedom, verdict):
    """1.8 errors of the difference: the normal's one-sided p is 0.036, that of t(2) 0.107."""

    def changed(value):
        figure = Metric(value, "nats", False, 900, 0.01, freedom)
        return record("divergence", metrics={"kld_p99": figure})

    limits = Thresholds(tolerance={"divergence": {"kld_p99": Tolerance(absolute=0.001)}})
    assert compare([changed(0.1)], [changed(0.1255)], limits).verdict is verdict


def test_another_tokenizer_is_not_comparable(compare):
    comparison = compare([size(1000)], [size(2000)], session={"settings": {"tokenizer": "b"}})
    assert comparison.exit_code == 1  # a run that does not know its tokenizer

    both = compare_runs(replace(comparison.before, settings={"tokenizer": "a"}), comparison.after)
    assert both.exit_code == 2
    assert both.refusals == ("measured with another tokenizer",)


def test_what_one_run_was_not_asked_for_is_told_from_what_it_lost(compare):
    selected = compare(SPEED_AND_SIZE, [speed(100)])
    assert selected.uncovered == ("ewq-0.65/memory: only in the baseline",)
    assert selected.losses == ()
    lost = compare(SPEED_AND_SIZE, [speed(100)], session=LOST)
    assert lost.uncovered == ()
    assert [loss.split(":")[0] for loss in lost.losses] == ["ewq-0.65/memory"]
    more = compare([speed(100)], SPEED_AND_SIZE)
    assert more.uncovered == ("ewq-0.65/memory: not in the baseline",)
