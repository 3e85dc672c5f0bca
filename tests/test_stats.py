import math

import numpy as np
import pytest
import scipy.stats

from ewq.errors import MeasurementError
from ewq.stats import (
    BOOTSTRAP_SEED,
    clustered_ratio,
    clustered_share_stderr,
    mcnemar_exact,
    noninferiority,
    paired_answers,
    paired_interval,
    paired_ratio,
    pooled_stderr,
    share_stderr,
    smallest_detectable_difference,
    student_quantile,
    two_sided_p,
)


def within_binomial_noise(hits, trials, share):
    """Whether ``hits`` of ``trials`` agree with a true share, at four standard errors."""
    return abs(hits / trials - share) < 4 * math.sqrt(share * (1 - share) / trials)


@pytest.mark.parametrize(
    ("n01", "n10", "p"),
    [
        pytest.param(0, 0, 1.0, id="no flips"),
        pytest.param(5, 5, 1.0, id="balanced"),
        pytest.param(1, 0, 1.0, id="one flip"),
        pytest.param(6, 0, 2 / 2**6, id="six one way"),
        # 2 (C(12,0) + C(12,1) + C(12,2)) / 2^12
        pytest.param(10, 2, 2 * (1 + 12 + 66) / 4096, id="ten to two"),
    ],
)
def test_mcnemar_matches_hand_worked_cases(n01, n10, p):
    assert mcnemar_exact(n01, n10) == pytest.approx(p, rel=1e-12)
    assert mcnemar_exact(n10, n01) == pytest.approx(p, rel=1e-12)


def test_mcnemar_is_the_doubled_binomial_tail():
    for n01 in range(12):
        for n10 in range(12):
            tail = scipy.stats.binom.cdf(min(n01, n10), n01 + n10, 0.5)
            assert mcnemar_exact(n01, n10) == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_false_alarms_under_equality_stay_at_alpha():
    rng = np.random.default_rng(1)
    discordant = rng.binomial(1000, 0.05, size=2000)
    worse = rng.binomial(discordant, 0.5)
    alarms = sum(
        mcnemar_exact(n01, n - n01) < 0.05 for n, n01 in zip(discordant, worse, strict=True)
    )
    # An exact test of a discrete statistic rejects at most as often as alpha, here about 3.5 %.
    assert 0.02 < alarms / 2000 < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)


def test_paired_accuracy_counts_flips_both_ways():
    result = paired_answers([1, 1, 1, 0, 0, 1, 0, 1], [1, 0, 0, 1, 0, 1, 0, 1])
    assert result.delta.n == 8
    assert result.delta.value == pytest.approx(-1 / 8)
    assert result.flips.value == pytest.approx(3 / 8)
    assert result.mcnemar_p.value == 1.0
    # sd of (0, -1, -1, 1, 0, 0, 0, 0) over sqrt(8)
    assert result.delta.stderr == pytest.approx(scipy.stats.sem([0, -1, -1, 1, 0, 0, 0, 0]))
    assert result.delta.interval.low < result.delta.value < result.delta.interval.high


@pytest.mark.parametrize("subjects", [1, 3])
def test_questions_of_too_few_subjects_stand_for_themselves(subjects):
    """One subject has no spread between subjects; its questions still have one among them."""
    base = np.array([1] * 10 + [0] * 5 + [1, 0] * 60)
    new = np.array([0] * 10 + [1] * 5 + [1, 0] * 60)
    labels = [i % subjects for i in range(len(base))]
    result = paired_answers(base, new, labels).delta
    assert result.stderr == pytest.approx(scipy.stats.sem(new - base))
    assert result.freedom == len(base) - 1
    assert result.interval.low < result.value < result.interval.high


def test_few_subjects_are_fewer_degrees_of_freedom():
    rng = np.random.default_rng(14)
    base, new = rng.random(200) < 0.6, rng.random(200) < 0.6
    result = paired_answers(base, new, [i % 5 for i in range(200)])
    assert result.delta.freedom == 4
    expected = (scipy.stats.t.ppf(0.975, 4) + scipy.stats.t.ppf(0.8, 4)) * result.delta.stderr
    assert result.smallest_detectable == pytest.approx(max(expected, 6 / 200))


def test_equal_answers_leave_room_for_a_difference():
    same = paired_answers([1, 0] * 50, [1, 0] * 50)
    assert [metric.value for metric in same] == [0.0, 0.0, 1.0]
    assert same.delta.stderr == pytest.approx(1 / 100)
    # Six flips one way are the fewest that the exact test can call significant at 5 %.
    assert same.smallest_detectable == pytest.approx(6 / 100)


def test_smallest_detectable_matches_the_published_table():
    """5 % flips of 14,042 questions: 0.53 points at 80 % power."""
    base = np.ones(14_042)
    new = base.copy()
    new[:351] = 0
    base[351:702] = 0
    assert paired_answers(base, new).smallest_detectable * 100 == pytest.approx(0.53, abs=0.005)


def test_clustered_ratio_of_single_items_is_the_textbook_standard_error():
    values = np.random.default_rng(2).normal(size=30)
    estimate = clustered_ratio(values, np.ones(30))
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.stderr == pytest.approx(scipy.stats.sem(values))


def test_clustered_ratio_matches_a_hand_worked_case():
    # Clusters a: total 3 of size 3; b: total 5 of size 1. Ratio 2, residuals -3 and 3.
    estimate = clustered_ratio([1, 2, 5], [1, 2, 1], ["a", "a", "b"])
    assert estimate.value == 2.0
    assert estimate.stderr == pytest.approx(math.sqrt(2 / 1 * 18) / 4)
    assert estimate.clusters == 2


def test_repeating_items_inside_their_cluster_adds_no_certainty():
    values = np.random.default_rng(3).normal(size=20)
    once = clustered_ratio(values, np.ones(20))
    tenfold = clustered_ratio(np.repeat(values, 10), np.ones(200), list(np.repeat(range(20), 10)))
    assert tenfold.stderr == pytest.approx(once.stderr)
    assert clustered_ratio(np.repeat(values, 10), np.ones(200)).stderr < once.stderr / 2


def test_one_cluster_gives_no_error():
    assert clustered_ratio([1, 2, 3], [1, 1, 1], ["a"] * 3).stderr is None


def test_bootstrap_of_single_items_is_scipys():
    values = np.random.default_rng(4).normal(size=50)
    ours = paired_interval(values, np.ones(50))
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    scipys = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=2000, method="percentile", rng=rng
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((scipys.low, scipys.high), rel=1e-12)


@pytest.mark.parametrize("df", [1, 5, 56, None])
def test_student_quantiles_are_scipys(df):
    theirs = scipy.stats.norm if df is None else scipy.stats.t(df)
    for share in (0.01, 0.5, 0.8, 0.975, 0.9999):
        assert student_quantile(share, df) == pytest.approx(theirs.ppf(share), abs=1e-12)


def test_bootstrap_is_reproducible_and_draws_whole_clusters():
    values = np.random.default_rng(5).normal(size=30)
    clusters = list(np.repeat(range(30), 8))
    spread = np.repeat(values, 8), np.ones(240)
    by_cluster = paired_interval(*spread, clusters)
    assert by_cluster == paired_interval(*spread, clusters)
    by_item = paired_interval(*spread)
    assert by_item.high - by_item.low < 0.6 * (by_cluster.high - by_cluster.low)


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(6)
    trials, hits = 300, 0
    clusters = list(np.repeat(range(50), 4))
    for _ in range(trials):
        values = np.repeat(rng.normal(size=50), 4) + rng.normal(size=200)
        interval = paired_interval(values, np.ones(200), clusters)
        hits += interval.low <= 0 <= interval.high
    assert 0.89 < hits / trials < 0.99


@pytest.mark.parametrize("groups", [2, 4, 8, 40])
def test_paired_interval_covers_the_truth_with_few_clusters_too(groups):
    rng = np.random.default_rng(groups)
    trials, hits = 400, 0
    clusters = list(np.repeat(range(groups), 4))
    for _ in range(trials):
        values = np.repeat(rng.normal(size=groups), 4) + rng.normal(size=4 * groups)
        interval = paired_interval(values, np.ones(4 * groups), clusters)
        hits += interval.low <= 0 <= interval.high
    assert within_binomial_noise(hits, trials, 0.95)


def test_where_no_item_differs_the_interval_has_the_least_width():
    same = paired_interval(np.zeros(50), np.ones(50), least_stderr=0.02)
    assert same.high == -same.low == pytest.approx(0.02 * scipy.stats.t.ppf(0.975, 49))


def test_ln_ratio_is_the_paired_t_test_where_items_are_equally_long():
    rng = np.random.default_rng(7)
    base = rng.normal(300, 30, size=25)
    new = base + rng.normal(1.0, 2.0, size=25)
    result = clustered_ratio(new - base, np.full(25, 100))
    statistic = scipy.stats.ttest_rel(new, base).statistic
    assert result.value == pytest.approx((new.sum() - base.sum()) / 2500)
    assert result.value / result.stderr == pytest.approx(statistic)
    low, high = paired_interval(new - base, np.full(25, 100))
    assert low < result.value < high


def test_pairing_is_far_tighter_than_two_separate_errors():
    rng = np.random.default_rng(8)
    base = rng.normal(300, 30, size=100)
    new = base + rng.normal(0, 1, size=100)
    separate = math.hypot(scipy.stats.sem(base / 100), scipy.stats.sem(new / 100))
    assert clustered_ratio(new - base, np.full(100, 100)).stderr < separate / 20


@pytest.mark.parametrize("per_cluster", [1, 5], ids=["items", "clusters of 5"])
def test_clustered_test_under_equality_alarms_at_alpha(per_cluster):
    rng = np.random.default_rng(9)
    trials, groups = 1500, 30
    clusters = list(np.repeat(range(groups), per_cluster))
    sizes = np.full(groups * per_cluster, 50)
    alarms = 0
    for _ in range(trials):
        shared = np.repeat(rng.normal(size=groups), per_cluster)
        change = shared + rng.normal(size=groups * per_cluster)
        estimate = clustered_ratio(change, sizes, clusters)
        alarms += abs(estimate.value) > scipy.stats.t.ppf(0.975, groups - 1) * estimate.stderr
    assert within_binomial_noise(alarms, trials, 0.05)


def test_noninferiority_is_the_one_sided_t_test():
    differences = np.random.default_rng(10).normal(-0.002, 0.05, size=40)
    expected = scipy.stats.ttest_1samp(differences, -0.01, alternative="greater")
    p_value = noninferiority(differences.mean(), scipy.stats.sem(differences), 0.01, df=39)
    assert p_value == pytest.approx(expected.pvalue)
    assert (p_value < 0.05) == (expected.confidence_interval(0.95).low > -0.01)


def test_noninferiority_at_the_margin_is_granted_at_alpha():
    rng = np.random.default_rng(11)
    trials = 4000
    deltas = rng.normal(-0.01, 0.004, size=trials)
    granted = sum(noninferiority(delta, 0.004, 0.01) < 0.05 for delta in deltas)
    assert within_binomial_noise(granted, trials, 0.05)


@pytest.mark.parametrize(
    ("delta", "stderr", "margin", "holds"),
    [
        pytest.param(0.0, 0.001, 0.01, True, id="no change, small error"),
        pytest.param(0.0, 0.02, 0.01, False, id="no change, large error shows nothing"),
        pytest.param(-0.02, 0.001, 0.01, False, id="worse"),
        pytest.param(0.0, 0.0, 0.0, False, id="exactly at the margin"),
        pytest.param(0.99, 0.001, -0.98, True, id="a ratio with a floor"),
    ],
)
def test_noninferiority_needs_evidence(delta, stderr, margin, holds):
    assert (noninferiority(delta, stderr, margin) < 0.05) is holds


def test_smallest_detectable_difference_is_found_with_its_power():
    rng = np.random.default_rng(12)
    trials, stderr = 4000, 0.3
    truth = smallest_detectable_difference(stderr)
    assert truth == pytest.approx((1.959964 + 0.841621) * stderr, rel=1e-5)
    found = np.sum(np.abs(rng.normal(truth, stderr, size=trials)) > 1.959964 * stderr)
    assert within_binomial_noise(int(found), trials, 0.8)


def test_pooled_stderr_matches_a_hand_worked_case():
    expected = math.sqrt((9 * 0.1**2 * 10 + 19 * 0.2**2 * 20) / 28 / 30)
    assert pooled_stderr([0.1, 0.2], [10, 20]) == pytest.approx(expected)


def test_pooled_stderr_of_one_group_is_its_own():
    assert pooled_stderr([0.03], [250]) == pytest.approx(0.03)


def test_pooled_stderr_is_that_of_the_mean_when_groups_are_alike():
    rng = np.random.default_rng(13)
    groups = [rng.random(size) < 0.6 for size in (100, 250, 400)]
    pooled = pooled_stderr([scipy.stats.sem(g) for g in groups], [len(g) for g in groups])
    assert pooled == pytest.approx(scipy.stats.sem(np.concatenate(groups)), rel=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda: paired_answers([1, 0], [1]), "cannot pair 1", id="lengths"),
        pytest.param(lambda: paired_answers([], []), "nothing to average", id="nothing"),
        pytest.param(lambda: clustered_ratio([1], [0]), "nothing to average", id="no size"),
        pytest.param(lambda: clustered_ratio([1, 2], [1, 1], ["a"]), "1 cluster", id="labels"),
        pytest.param(lambda: noninferiority(0.0, -1.0, 0.1), "standard error of -1", id="stderr"),
        pytest.param(lambda: noninferiority(math.nan, 1.0, 0.1), "cannot test", id="nan"),
    ],
)
def test_impossible_statistics_are_errors(call, message):
    with pytest.raises(MeasurementError, match=message):
        call()


@pytest.mark.parametrize(
    ("count", "n", "expected"),
    [
        pytest.param(6, 12, (0.25 / 11) ** 0.5, id="some"),
        pytest.param(1, 2, 0.5, id="one of two"),
        pytest.param(0, 12, (2 / 16 * 14 / 16 / 16) ** 0.5, id="none"),
        pytest.param(12, 12, (2 / 16 * 14 / 16 / 16) ** 0.5, id="all"),
        pytest.param(1, 1, (3 / 5 * 2 / 5 / 5) ** 0.5, id="one of one"),
    ],
)
def test_a_share_is_never_certain(count, n, expected):
    assert share_stderr(count, n) == pytest.approx(expected)


@pytest.mark.parametrize("stderr", [None, 0.0, 1e-17], ids=["one cluster", "alike", "rounding"])
def test_clusters_that_are_alike_make_no_share_certain(stderr):
    assert clustered_share_stderr(stderr, 6, 8) == share_stderr(6, 8)
    assert clustered_share_stderr(0.01, 6, 8) == 0.01


def test_a_share_of_nothing_has_no_error():
    with pytest.raises(MeasurementError, match="nothing was counted"):
        share_stderr(0, 0)


@pytest.mark.parametrize(
    ("value", "stderr", "df", "expected"),
    [
        pytest.param(0.0, 0.0, None, 1.0, id="certainly nothing"),
        pytest.param(1e-9, 0.0, None, 0.0, id="certainly something"),
        pytest.param(-1.959963985, 1.0, None, 0.05, id="normal"),
        pytest.param(4.302652730, 1.0, 2, 0.05, id="Student"),
    ],
)
def test_two_sided_p(value, stderr, df, expected):
    assert two_sided_p(value, stderr, df) == pytest.approx(expected, abs=1e-8)


def test_a_single_item_has_an_interval_of_its_least_error():
    half = paired_interval([1.0], [1.0], least_stderr=0.5).high - 1.0
    assert half == pytest.approx(0.5 * 12.7062047)  # Student's t with one degree of freedom


def test_paired_ratio_is_students_interval_of_the_logarithms():
    before, after = [10.0, 20.0, 40.0], [11.0, 21.0, 46.0]
    logs = np.log(np.divide(after, before))
    ratio, (low, high) = paired_ratio(before, after)
    half = scipy.stats.t.ppf(0.975, 2) * logs.std(ddof=1) / np.sqrt(3)

    assert (ratio, low, high) == pytest.approx(
        tuple(np.exp(logs.mean() + half * np.array([0, -1, 1])))
    )
    with pytest.raises(MeasurementError, match="one pair has no error"):
        paired_ratio([1.0], [2.0])
