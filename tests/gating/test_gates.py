"""Every verdict, and every way to reach it."""

import math

import numpy as np
import pytest
from scipy.stats import sem

from ewq.gating.change import changes, paired_changes
from ewq.gating.gates import judge, overall
from ewq.gating.thresholds import BUILT_IN, DEFAULT_TOLERANCES, Limit, Test, Tolerance
from ewq.measurement import Items, Metric
from ewq.record import Verdict
from ewq.stats import clustered_ratio, paired_answers, smallest_detectable_difference, two_sided_p
from ewq.tasks.table import TASKS
from tests.make_runs import CHANCE, NOISY, THROTTLED, answers, letters, metric, mmlu, record

P, F, Q, N, U = (
    Verdict.PASS,
    Verdict.FAIL,
    Verdict.INCONCLUSIVE,
    Verdict.NO_BASELINE,
    Verdict.IMPROVED,
)
NONINFERIOR = Limit(min=-0.01, test=Test.NONINFERIORITY)
NO_WORSE_PPL = Limit(max=0.02, test=Test.NONINFERIORITY)
MCNEMAR = Limit(min=-0.005, test=Test.MCNEMAR, alpha=0.01)


def delta(value, stderr=0.002, n=14042):
    return {"accuracy_delta": metric(value, stderr=stderr, n=n)}


def paired(value, flips, n=14042):
    return delta(value, n=n) | {"flips": metric(flips, better=False, n=n)}


def ppl(value, stderr=0.002, n=5000):
    return {"ln_ppl_ratio": metric(value, stderr=stderr, n=n, better=False, unit="nats")}


# limits, metrics, doubts, verdict
LIMITS = {
    "bound: inside": ({"accuracy": Limit(min=0.6)}, {"accuracy": metric(0.6)}, (), P),
    "bound: below": ({"accuracy": Limit(min=0.6)}, {"accuracy": metric(0.59)}, (), F),
    "bound: above": ({"kld_mean": Limit(max=0.1)}, {"kld_mean": metric(0.11)}, (), F),
    "bound: between two": ({"accuracy": Limit(0.2, 0.9)}, {"accuracy": metric(0.5)}, (), P),
    "non-inferiority: shown": ({"accuracy_delta": NONINFERIOR}, delta(-0.001), (), P),
    "non-inferiority: planted drop": ({"accuracy_delta": NONINFERIOR}, delta(-0.05), (), F),
    "non-inferiority: too few questions": (
        {"accuracy_delta": NONINFERIOR},
        delta(-0.005, stderr=0.02, n=60),
        (),
        Q,
    ),
    "non-inferiority: beyond, but not even different from zero": (
        {"accuracy_delta": NONINFERIOR},
        delta(-0.02, stderr=0.02, n=60),
        (),
        Q,
    ),
    "non-inferiority: a clear gain": ({"accuracy_delta": NONINFERIOR}, delta(0.03), (), P),
    "non-inferiority: exact equality": ({"accuracy_delta": NONINFERIOR}, delta(0.0, 0.0), (), P),
    "non-inferiority: exact excess": ({"accuracy_delta": NONINFERIOR}, delta(-0.02, 0.0), (), F),
    "non-inferiority: no error known": (
        {"accuracy_delta": NONINFERIOR},
        delta(0.0, stderr=None),
        (),
        Q,
    ),
    "upper non-inferiority: shown": ({"ln_ppl_ratio": NO_WORSE_PPL}, ppl(0.01), (), P),
    "upper non-inferiority: planted rise": ({"ln_ppl_ratio": NO_WORSE_PPL}, ppl(0.05), (), F),
    "upper non-inferiority: a gain": ({"ln_ppl_ratio": NO_WORSE_PPL}, ppl(-0.05), (), P),
    "McNemar: lopsided flips": ({"accuracy_delta": MCNEMAR}, paired(-0.01, 0.03), (), F),
    "McNemar: small drop": ({"accuracy_delta": MCNEMAR}, paired(-0.004, 0.01), (), P),
    "McNemar: few flips": ({"accuracy_delta": MCNEMAR}, paired(-0.02, 0.06, n=100), (), Q),
    "McNemar: flips missing": ({"accuracy_delta": MCNEMAR}, delta(-0.02), (), F),
    "missing metric": ({"accuracy": Limit(min=0)}, {"flips": metric(0.0)}, (), F),
    "metric of the other device": (
        {"vram_peak_bytes": Limit(max=1)},
        {"ram_peak_bytes": metric(5.0)},
        (),
        P,
    ),
    "chance level takes a pass": ({"accuracy_delta": NONINFERIOR}, delta(0.0), CHANCE, Q),
    "chance level leaves a failure": ({"accuracy_delta": NONINFERIOR}, delta(-0.4), CHANCE, F),
    "chance level leaves other metrics": (
        {"kld_mean": Limit(max=1)},
        {"kld_mean": metric(0.1)},
        CHANCE,
        P,
    ),
    "noise takes a pass": (
        {"decode_ratio": Limit(min=0.9)},
        {"decode_ratio": metric(1.0)},
        NOISY,
        Q,
    ),
    "throttling takes a failure": (
        {"decode_ratio": Limit(min=0.9)},
        {"decode_ratio": metric(0.5)},
        THROTTLED,
        Q,
    ),
    "noise reaches the ratios of larger batches": (
        {"decode_ratio_b8": Limit(min=0.9)},
        {"decode_ratio_b8": metric(0.5)},
        NOISY,
        Q,
    ),
    "a ratio around one is no proof of a loss": (
        {"prefill_ratio": Limit(min=1.0, test=Test.NONINFERIORITY)},
        {"prefill_ratio": metric(0.98, stderr=0.05, n=5)},
        (),
        Q,
    ),
    "noise leaves counts": (
        {"weights_bytes": Limit(max=1)},
        {"weights_bytes": metric(2.0)},
        NOISY,
        F,
    ),
    "one failure among passes": (
        {"accuracy": Limit(min=0.6), "accuracy_delta": NONINFERIOR},
        {"accuracy": metric(0.7)} | delta(-0.05),
        (),
        F,
    ),
}


@pytest.mark.parametrize(
    ("limits", "metrics", "doubts", "expected"), LIMITS.values(), ids=LIMITS.keys()
)
def test_limits(limits, metrics, doubts, expected):
    names = {*limits, *metrics}
    task = next(task for task in TASKS.values() if all(task.figure(name) for name in names))
    judgement = judge(record(task.name, metrics=metrics, doubts=doubts), limits)

    assert judgement.verdict is expected, judgement
    assert bool(judgement.reasons) == (expected is not P)


def test_a_failure_carries_both_values_tolerance_statistic_and_what_could_be_detected():
    metrics = delta(-0.05) | {"accuracy": metric(0.65, stderr=0.004, n=14042)}
    (reason,) = judge(record(metrics=metrics), {"accuracy_delta": NONINFERIOR}).reasons

    assert "accuracy_delta -0.05 ± 0.002 fraction is beyond min -0.01" in str(reason)
    assert "accuracy: reference 0.7, now 0.65" in str(reason)
    assert "non-inferiority p 1 at alpha 0.05" in str(reason)
    assert "detectable 0.0056" in str(reason)
    assert "n 14042" in str(reason)


def test_a_perplexity_failure_names_both_perplexities():
    metrics = ppl(math.log(2)) | {"perplexity": metric(20.0, stderr=0.5, better=False)}
    (reason,) = judge(record("perplexity", metrics=metrics), {"ln_ppl_ratio": NO_WORSE_PPL}).reasons

    assert "perplexity: reference 10, now 20" in str(reason)


def test_mcnemar_counts_the_questions_that_broke():
    (reason,) = judge(record(metrics=paired(-0.1, 0.2, n=100)), {"accuracy_delta": MCNEMAR}).reasons

    # 15 broken and 5 mended: P(Bin(20, 1/2) <= 5) = 0.0207 one-sided.
    assert "15 broken and 5 mended of 100" in str(reason)
    assert "p 0.0207" in str(reason)


def test_mcnemar_counts_the_documents_of_a_task_of_lm_eval():
    metrics = {"delta/acc": metric(-0.1, stderr=0.05, n=100), "flips/acc": metric(0.2, n=100)}
    task = "lm_eval-arc"
    (reason,) = judge(record(task, metrics=metrics), {"delta/acc": MCNEMAR}).reasons
    assert "15 broken and 5 mended of 100" in str(reason)

    (reason,) = judge(
        record(task, metrics={"delta/acc": metric(0)}), {"delta/acc": MCNEMAR}
    ).reasons
    assert "missing metric flips/acc" in str(reason)


def documents(**values):
    """Items of lm-eval's tasks: the value of each metric for each document."""
    rows = [(name, f"arc/{i}", "arc", v) for name, own in values.items() for i, v in enumerate(own)]
    columns = zip(*rows, strict=True)
    return Items(dict(zip(("metric", "document", "cluster", "value"), columns, strict=True)))


def test_runs_of_a_task_of_lm_eval_are_compared_document_by_document():
    right = [1.0] * 60 + [0.0] * 40
    before = {"acc": right, "f1": [0.5 + i / 500 for i in range(100)]}
    after = {"acc": right[12:] + [0.0] * 12, "f1": [v - 0.01 - v / 50 for v in before["f1"]]}
    old, new = (
        record(
            "lm_eval-arc",
            metrics={
                name: metric(sum(own) / 100, stderr=0.05, n=100) for name, own in each.items()
            },
            items=documents(**each),
        )
        for each in (before, after)
    )
    tolerances = BUILT_IN.tolerances_for("lm_eval-arc", "cpu")
    found = {each.metric: each for each in changes(old, new, tolerances)}
    broken = paired_answers(before["acc"], after["acc"])
    assert found["acc"].p_value == pytest.approx(broken.mcnemar_p.value)
    assert found["acc"].verdict is F
    assert found["f1"].verdict is F, "an unpaired error of 0.05 would hide it"
    assert found["f1"].stderr < 0.001


def test_a_missing_metric_says_what_is_present():
    (reason,) = judge(record(metrics={"flips": metric(0)}), {"accuracy": Limit(min=0)}).reasons

    assert str(reason) == "accuracy: missing metric, gated by min 0; present: flips"


def test_nothing_to_gate_by_is_no_baseline_and_says_so():
    judgement = judge(record(), {})

    assert judgement.verdict is N
    assert "nothing was gated" in str(judgement.reasons[0])


def test_a_baseline_with_nothing_to_gate_says_so():
    judgement = judge(record("samples"), {}, record("samples"), {})

    assert judgement.verdict is N
    assert "no metric of the baseline is gated" in str(judgement.reasons[0])


def speed(value, stderr=0.5):
    return {"decode_tokens_per_s": metric(value, stderr=stderr, n=5, unit="tokens/s")}


def size(value):
    return {"weights_bytes": metric(value, n=1, better=False, unit="bytes")}


def divergence(value, stderr=0.001):
    return {"kld_mean": metric(value, stderr=stderr, n=5000, better=False, unit="nats")}


# task, metrics before, metrics after, doubts after, verdict
BASELINES = {
    "the same": ("throughput", speed(100), speed(100), (), P),
    "slower decode": ("throughput", speed(100), speed(80), (), F),
    "slower within tolerance": ("throughput", speed(100), speed(92), (), P),
    "slower within noise": ("throughput", speed(100, 20), speed(80, 20), (), Q),
    "slower while throttled": ("throughput", speed(100), speed(80), THROTTLED, Q),
    "faster": ("throughput", speed(100), speed(120), (), U),
    "faster while throttled": ("throughput", speed(100), speed(120), THROTTLED, Q),
    "faster within noise": ("throughput", speed(100, 20), speed(120, 20), (), P),
    "more memory": ("memory", size(1000), size(1010), (), F),
    "memory within tolerance": ("memory", size(1000), size(1004), (), P),
    "less memory": ("memory", size(1000), size(900), (), U),
    "further from the reference": ("divergence", divergence(0.02), divergence(0.03), (), F),
    "nearer to the reference": ("divergence", divergence(0.03), divergence(0.02), (), U),
    "a gated metric is gone": ("memory", size(1000), {"load_s": metric(1.0)}, (), F),
    "a new metric": ("memory", size(1000), size(1000) | {"ram_peak_bytes": metric(1)}, (), P),
    "a metric without direction": (
        "mmlu",
        {"answered_A": metric(0.2, better=None)},
        {"answered_A": metric(0.9, better=None)},
        (),
        N,
    ),
}


@pytest.mark.parametrize(
    ("task", "before", "after", "doubts", "expected"), BASELINES.values(), ids=BASELINES.keys()
)
def test_baseline(task, before, after, doubts, expected):
    judgement = judge(
        record(task, metrics=after, doubts=doubts),
        {},
        record(task, metrics=before),
        DEFAULT_TOLERANCES[task],
    )

    assert judgement.verdict is expected, judgement


def test_broken_answers_are_found_by_pairing_where_independent_errors_would_see_nothing():
    before, after = mmlu(answers(140, 60)), mmlu(answers(128, 72))
    independent = judge(
        record(metrics=after.metrics),
        {},
        record(metrics=before.metrics),
        DEFAULT_TOLERANCES["mmlu"],
    )
    paired_up = judge(after, {}, before, DEFAULT_TOLERANCES["mmlu"])

    assert independent.verdict is Q
    assert paired_up.verdict is F
    assert "accuracy: 0.7 -> 0.64 fraction (-0.06, -8.57%): worse" in str(paired_up.reasons[0])
    assert "one-sided p 0.00024" in str(paired_up.reasons[0])


def scored(rows):
    fields = ("domain", "nll", "tokens", "bytes", "document")
    return Items(dict(zip(fields, zip(*rows, strict=True), strict=True)))


def test_a_rise_in_perplexity_is_found_window_by_window():
    windows = [["law", 300.0 + i, 100, 400, i] for i in range(12)]
    worse = [
        [d, nll * 1.01 + 0.1 * (i % 3), t, b, k] for i, (d, nll, t, b, k) in enumerate(windows)
    ]
    values = {"perplexity": metric(20.0, stderr=3.0, better=False, unit="ratio")}
    risen = {"perplexity": metric(20.7, stderr=3.0, better=False, unit="ratio")}
    judgement = judge(
        record("perplexity", metrics=risen, items=scored(worse)),
        {},
        record("perplexity", metrics=values, items=scored(windows)),
        DEFAULT_TOLERANCES["perplexity"],
    )

    assert judgement.verdict is F
    assert "paired error" in str(judgement.reasons[0])


def test_other_settings_are_no_baseline_and_never_a_regression():
    before = record(metrics={"accuracy": metric(0.9, stderr=0.001)}, settings={"shots": 0})
    judgement = judge(record(), {}, before, DEFAULT_TOLERANCES["mmlu"])

    assert judgement.verdict is N
    assert "setting shots was 0, is 5" in str(judgement.reasons[0])


def test_another_model_is_no_baseline():
    judgement = judge(record(), {}, record(fingerprint="sha256:2"), DEFAULT_TOLERANCES["mmlu"])

    assert judgement.verdict is N
    assert "another model" in str(judgement.reasons[0])


def test_a_baseline_asked_for_and_missing_shows_even_when_the_limits_pass():
    judgement = judge(
        record(), {"accuracy": Limit(min=0)}, missing_baseline=["there is no stored run"]
    )

    assert judgement.verdict is N
    assert [str(reason) for reason in judgement.reasons] == ["no baseline: there is no stored run"]


def test_a_broken_limit_outweighs_an_improvement():
    judgement = judge(
        record("memory", metrics=size(900)),
        {"weights_bytes": Limit(max=800)},
        record("memory", metrics=size(1000)),
        {"weights_bytes": Tolerance(relative=0.01)},
    )

    assert judgement.verdict is F
    assert [reason.verdict for reason in judgement.reasons] == [F, U]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ((P, U, N, Q, F), F),
        ((P, U, N, Q), Q),
        ((P, U, N), N),
        ((P, U), U),
        ((P,), P),
        ((), N),
    ],
)
def test_the_gravest_verdict_is_the_verdict_of_the_whole(verdicts, expected):
    assert overall(verdicts) is expected


@pytest.mark.parametrize("documents", [2, 4, 12])
def test_a_loss_at_the_limit_passes_as_often_as_alpha_says(documents):
    """Thousands of tokens of a few documents are a few independent observations."""
    rng = np.random.default_rng(documents)
    trials, passed = 600, 0
    limits = {"ln_ppl_ratio": NO_WORSE_PPL}
    for _ in range(trials):
        losses = rng.normal(0.02, 0.01, size=documents)
        change = Metric(
            float(losses.mean()), "nats", False, 9000, float(sem(losses)), documents - 1
        )
        judged = judge(record("perplexity", metrics={"ln_ppl_ratio": change}), limits)
        passed += judged.verdict is Verdict.PASS
    assert abs(passed / trials - 0.05) < 4 * math.sqrt(0.05 * 0.95 / trials)


@pytest.mark.parametrize(("freedom", "verdict"), [(None, F), (2, Q)])
def test_few_documents_do_not_make_a_failure_certain(freedom, verdict):
    change = Metric(0.05, "nats", False, 9000, 0.02, freedom)
    judged = judge(
        record("perplexity", metrics={"ln_ppl_ratio": change}), {"ln_ppl_ratio": NO_WORSE_PPL}
    )
    assert judged.verdict is verdict


@pytest.mark.parametrize("doubts", [(), CHANCE, NOISY], ids=["sure", "chance", "noise"])
def test_a_measurement_equal_to_the_last_bit_did_not_change(doubts):
    kept = mmlu("AAbb" * 6, doubts=doubts)
    judgement = judge(kept, {}, kept, DEFAULT_TOLERANCES["mmlu"])

    assert judgement.verdict is P
    (change, *_) = changes(kept, kept, DEFAULT_TOLERANCES["mmlu"])
    assert "no change" in change.text
    assert not change.worse


def test_one_changed_answer_is_that_change():
    before, after = mmlu("AAbb" * 6), mmlu("AAbb" * 5 + "AAbA")
    found = {each.metric: each for each in changes(before, after, DEFAULT_TOLERANCES["mmlu"])}

    assert found["accuracy"].delta == pytest.approx(1 / 24)
    assert found["accuracy"].p_value == 1.0
    assert "no change" not in found["accuracy"].text
    doubted = mmlu("AAbb" * 5 + "AAbA", doubts=CHANCE)
    assert judge(doubted, {}, before, DEFAULT_TOLERANCES["mmlu"]).verdict is Q


def test_other_answers_that_are_as_often_right_are_no_equal_measurement():
    before, after = mmlu("Ab" * 12, doubts=CHANCE), mmlu("bA" * 12, doubts=CHANCE)
    assert judge(after, {}, before, DEFAULT_TOLERANCES["mmlu"]).verdict is Q


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (size(1000), {}, "weights_bytes: missing metric, the baseline has it, this run does not"),
        ({}, size(1000), "weights_bytes: new metric, the baseline does not have it"),
    ],
    ids=["gone", "new"],
)
def test_a_metric_of_one_run_only_says_which(before, after, text):
    (change,) = changes(
        record("memory", metrics=before),
        record("memory", metrics=after),
        DEFAULT_TOLERANCES["memory"],
    )
    assert (change.text, change.worse) == (text, False)


def test_what_is_not_gated_is_never_worse():
    one, other = (record(metrics={"answered_A": metric(v, better=None)}) for v in (0.2, 0.9))
    (change,) = changes(one, other, {"answered_A": Tolerance(absolute=0.1)})
    assert (change.verdict, change.worse) == (None, False)


@pytest.mark.parametrize(
    ("name", "size", "slope"),
    [("perplexity", "tokens", math.exp(3.01)), ("bits_per_byte", "bytes", 1 / math.log(2))],
)
def test_the_error_of_a_paired_change_is_that_of_the_figure(name, size, slope):
    """The delta method: the error of the mean times the slope of the figure at the new mean."""
    windows = [["law", 300.0 + i, 100, 380 + 9 * i, i] for i in range(12)]
    risen = [[d, 301.0, t, b, k] for d, _, t, b, k in windows]
    figure = {name: metric(20.0, stderr=3.0, better=False, unit="ratio")}
    before, after = (
        record("perplexity", metrics=figure, items=scored(rows)) for rows in (windows, risen)
    )
    sizes = after.items.column(size)
    mean = clustered_ratio([1.0 - i for i in range(12)], sizes)
    found = paired_changes(before, after)[name]

    assert found.stderr == pytest.approx(mean.stderr * slope)
    assert found.p_value == pytest.approx(two_sided_p(mean.value, mean.stderr, 11))
    detectable = smallest_detectable_difference(mean.stderr, df=11)
    assert found.detectable == pytest.approx(detectable * slope)


@pytest.mark.parametrize(
    ("before", "after", "relative"), [(50.0, 60.0, 0.2), (-50.0, -60.0, -0.2), (0.0, 1.0, None)]
)
def test_a_change_is_told_as_a_share_and_with_its_tolerance(before, after, relative):
    tolerance = Tolerance(relative=0.1)
    old, new = (record("throughput", metrics=speed(value)) for value in (before, after))
    (change,) = changes(old, new, {"decode_tokens_per_s": tolerance})

    assert change.delta == after - before
    assert change.relative == (None if relative is None else pytest.approx(relative))
    assert change.statistic.startswith("tolerance 10.00%; unpaired error")


def test_a_change_of_one_run_only_has_no_size():
    (change,) = changes(record("memory", metrics={}), record("memory", metrics=size(1000)), {})
    assert (change.delta, change.relative, change.verdict) == (None, None, None)


def test_answers_of_one_subject_belong_together():
    subjects = [[name, 25] for name in ("anatomy", "law", "marketing", "virology")]
    settings = {"shots": 5, "data": "sha256:d", "subjects": subjects}
    old, new = "A" * 100, "b" * 25 + "A" * 75
    before, after = (record(items=letters(each), settings=settings) for each in (old, new))
    labels = [name for name, size in subjects for _ in range(size)]
    clustered = paired_answers([1] * 100, [0] * 25 + [1] * 75, labels).delta

    assert paired_changes(before, after)["accuracy"].stderr == clustered.stderr
    assert clustered.stderr > 0.2


@pytest.mark.parametrize(("errors", "verdict"), [(1.55, Q), (1.70, F)])
def test_the_direction_is_asked_for_so_one_tail_decides(errors, verdict):
    """1.645 standard errors are 5 % of one tail."""
    old, new = (
        record("throughput", metrics=speed(v, 10 / 2**0.5)) for v in (100, 100 - 10 * errors)
    )
    tolerances = {"decode_tokens_per_s": Tolerance(relative=0.1)}
    assert changes(old, new, tolerances)[0].verdict is verdict


def test_the_side_of_fewer_clusters_decides_how_sure_a_difference_is():
    values = [Metric(20.0 + 3 * i, "ratio", False, 900, 1.0, 30 - 28 * i) for i in range(2)]
    old, new = (record("perplexity", metrics={"perplexity": value}) for value in values)
    (change,) = changes(old, new, DEFAULT_TOLERANCES["perplexity"])
    assert change.p_value == pytest.approx(two_sided_p(3.0, 2**0.5, 2))
    assert change.sentence == f"{change.text} [{change.statistic}]"


def test_a_figure_of_one_observation_is_tested_with_the_normal_distribution():
    metrics = delta(0.03, n=1)
    assert judge(record(metrics=metrics), {"accuracy_delta": NONINFERIOR}).verdict is P
