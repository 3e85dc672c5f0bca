"""What is expected of the newest run, and shifts found in series with and without one."""

import numpy as np
import pytest
from scipy.stats import binom, t

from ewq.errors import InputError
from ewq.gating.trend import FEWEST, SHIFT_ALPHA, history_of, prediction, shifts
from ewq.record import Verdict
from ewq.storage.runs import read_run
from tests.make_runs import GPU, NOISY, metric, record, stored_run

SPEED = "decode_tokens_per_s"
RUNS = 30


def runs_of(folder, values, *, name=SPEED, task="throughput", stderr=0.5, last=None, **changes):
    """One stored run a value, oldest first; ``last`` changes the newest record."""
    better = {"kld_mean": False, "weights_bytes": False}.get(name, True)
    found = []
    for number, value in enumerate(values, 1):
        figure = metric(float(value), stderr=stderr, better=better, unit="tokens/s")
        extra = {**changes, **(last or {})} if number == len(values) else changes
        one = record(task, metrics={name: figure}, **extra)
        commit = f"{number:02}" * 20
        path = stored_run(folder, [one], number=number, day=number, commit=commit)
        found.append(read_run(path))
    return found


def normal(seed, n=RUNS):
    return np.random.default_rng(seed).normal(100, 1, n)


def the_trend(runs, *metrics, **options):
    (trend,) = history_of(runs, metrics or [SPEED], **options).trends
    return trend


def test_a_shift_of_three_deviations_is_found_at_its_commit(tmp_path):
    values = normal(7)
    values[20:] -= 3
    trend = the_trend(runs_of(tmp_path, values))

    (shift,) = trend.shifts
    assert trend.runs[shift.place].commit == "21" * 20
    assert shift.before == pytest.approx(values[:20].mean())
    assert shift.after == pytest.approx(values[20:].mean())


def test_most_shifts_of_three_deviations_are_found_within_one_run():
    found = 0
    for seed in range(100):
        values, place = normal(seed), 5 + seed % 20
        values[place:] += 3
        found += any(abs(shift.place - place) <= 1 for shift in shifts(values))
    assert found >= 95


def test_series_without_a_shift_give_no_more_alarms_than_alpha_says():
    alarms = sum(bool(shifts(normal(seed))) for seed in range(100, 200))
    assert binom.sf(alarms - 1, 100, SHIFT_ALPHA) > 0.01


def test_two_shifts_are_both_found():
    values = np.concatenate([normal(1, 15), normal(2, 15) + 8, normal(3, 15) - 4])
    assert [shift.place for shift in shifts(values)] == [15, 30]


def test_a_figure_that_repeats_exactly_shifts_exactly():
    (shift,) = shifts([3.5] * 12 + [3.6] * 8)
    assert shift == (12, 3.5, 3.6)
    assert shifts([3.5] * 20) == ()
    assert shifts([3.5, 3.5 + 1e-9] * 10) == ()


def test_expected_is_students_interval_of_one_future_value(tmp_path):
    values = normal(3, 12)
    low, high = the_trend(runs_of(tmp_path, values, stderr=0.0)).expected
    known = values[1:-1]
    half = t.ppf(0.975, 9) * known.std(ddof=1) * np.sqrt(1.1)

    assert (low, high) == pytest.approx((known.mean() - half, known.mean() + half))


def test_one_run_in_twenty_lies_outside_what_was_expected():
    outside = 0
    for seed in range(1000):
        *earlier, newest = normal(seed, 11)
        low, high = prediction([metric(value, stderr=0.0) for value in earlier], 0.05)
        outside += not low <= newest <= high
    assert 0.001 < binom.cdf(outside, 1000, 0.05) < 0.999


def test_a_figure_that_repeats_is_expected_within_its_own_error(tmp_path):
    kld = {"name": "kld_mean", "task": "divergence", "stderr": 0.01}
    trend = the_trend(runs_of(tmp_path, [0.2] * 5, **kld), "kld_mean")
    low, high = trend.expected

    assert high - low == pytest.approx(2 * t.ppf(0.975, 3) * 0.01 * np.sqrt(1.25))
    assert trend.verdict is Verdict.PASS


def test_a_figure_that_is_exactly_nothing_may_move_by_what_a_baseline_tolerates(tmp_path):
    kld = {"name": "kld_mean", "task": "divergence", "stderr": 0.0}
    trend = the_trend(runs_of(tmp_path, [0.0] * 5, **kld), "kld_mean")
    assert trend.expected == (-1e-5, 1e-5)


def test_exact_counts_are_expected_within_what_a_baseline_tolerates(tmp_path):
    size = {"name": "weights_bytes", "task": "memory", "stderr": None}
    verdicts = [
        the_trend(runs_of(tmp_path / str(newest), [1e6] * 4 + [newest], **size), "weights_bytes")
        for newest in (1_004_000, 1_006_000)
    ]
    assert [trend.verdict for trend in verdicts] == [Verdict.PASS, Verdict.FAIL]


@pytest.mark.parametrize(
    ("newest", "verdict", "code"),
    [(100, Verdict.PASS, 0), (90, Verdict.FAIL, 1), (110, Verdict.IMPROVED, 0)],
)
def test_only_the_bad_direction_fails(tmp_path, newest, verdict, code):
    found = history_of(runs_of(tmp_path, [*normal(5, 10), newest]), [SPEED])
    assert [trend.verdict for trend in found.trends] == [verdict]
    assert found.exit_code == code


def test_a_doubtful_clock_does_not_fail(tmp_path):
    found = history_of(runs_of(tmp_path, [*normal(5, 10), 90], last={"doubts": NOISY}), [SPEED])
    assert found.trends[0].verdict is Verdict.INCONCLUSIVE
    assert found.exit_code == 0


def test_too_few_runs_expect_nothing(tmp_path):
    runs = runs_of(tmp_path, [100, 101, 99, 50])
    assert history_of(runs[1:], [SPEED]).exit_code == 2
    assert len(runs) == FEWEST + 1
    assert history_of(runs, [SPEED]).trends[0].expected is not None


def test_lines_share_the_probability_of_a_false_alarm(tmp_path):
    runs = []
    for day, values in enumerate(zip(*(normal(seed, 11) for seed in range(4)), strict=True), 1):
        speeds = [
            record("throughput", f"ewq-0.{n}", {SPEED: metric(value, stderr=0.0)})
            for n, value in enumerate(values, 1)
        ]
        runs.append(read_run(stored_run(tmp_path, speeds, number=day, day=day)))
    *others, one = history_of(runs, [SPEED]).trends
    known = normal(0, 11)[:-1]

    assert (one.record.variant, len(others)) == ("ewq-0.1", 3)
    assert one.expected.high == pytest.approx(
        known.mean() + t.ppf(1 - 0.05 / 8, 9) * known.std(ddof=1) * np.sqrt(1.1)
    )


def test_runs_of_another_machine_model_or_setting_are_left_out_with_reasons(tmp_path):
    runs = runs_of(tmp_path, normal(4, 6))
    speed = {SPEED: metric(50.0, stderr=0.5)}
    other = {
        "model": (record("throughput", metrics=speed, fingerprint="sha256:2"), GPU),
        "machine": (record("throughput", metrics=speed), GPU | {"gpu": "NVIDIA L4"}),
        "settings": (record("throughput", metrics=speed, settings={"shots": 0}), GPU),
    }
    for number, (one, machine) in enumerate(other.values(), 7):
        path = stored_run(tmp_path / "other", [one], number=number, machine=machine)
        runs.append(read_run(path))
    found = history_of(runs, [SPEED])

    assert [run.commit for run in found.trends[0].runs] == [f"{n:02}" * 20 for n in range(1, 7)]
    assert any("another model" in text for text in found.left_out)
    assert any("another gpu" in text for text in found.left_out)


def test_an_unknown_metric_is_bad_input_that_names_those_there_are(tmp_path):
    runs = runs_of(tmp_path, [100, 101])
    assert the_trend(runs, f"throughput/{SPEED}").metric == SPEED
    with pytest.raises(InputError, match=rf"no metric 'speed'; it has {SPEED}"):
        history_of(runs, ["speed"])
    with pytest.raises(InputError, match="no stored run"):
        history_of([], [SPEED])
