"""``--ewq-confirm``: a speed that fails its gate is measured again, and the second time decides."""

import json

import pytest
import transformers.modeling_utils  # noqa: F401 - torch parts of it cannot be imported twice

from tests.harness.fakes import finished, set_behaviour

TWO = ("--ewq-variants", "fp16,ewq-0.5", "--benchmark-autosave")
SPEED = ("-k", "throughput")
AGAINST_NEWEST = ("--ewq-baseline", "newest")
SLOW_S = 0.002
ONE_MEASUREMENT = 4
"""Generations of the smoke tier: one round to warm up and three that count."""


@pytest.fixture
def slowed(bench, project):
    """A stored run, then another whose ``ewq-0.5`` behaves as told: the result and its record."""

    def run(*arguments, task="throughput", **behaviour):
        bench(*TWO, "-k", task, save=True).assert_outcomes(passed=2)
        set_behaviour(project.path, **{"ewq_0.5": behaviour})
        result = bench(*TWO, "-k", task, *AGAINST_NEWEST, *arguments, save=True)
        newest = sorted(project.path.glob(".benchmarks/*/*.json"))[-1]
        stored = json.loads(newest.read_text())["benchmarks"]
        (one,) = (each for each in stored if each["params"]["variant"] == "ewq-0.5")
        return result, one

    return run


def test_a_slow_moment_passes_and_the_record_says_withdrawn(slowed):
    result, stored = slowed("--ewq-confirm", step_s=SLOW_S, slow_calls=ONE_MEASUREMENT)
    record = stored["extra_info"]["ewq"]

    result.assert_outcomes(passed=2)
    assert record["verdict"] == "pass"
    assert record["metrics"]["decode_tokens_per_s"]["value"] == pytest.approx(100)
    first = record["side"]["first_measurement"]
    assert first["outcome"] == "withdrawn"
    assert first["metrics"]["decode_tokens_per_s"]["value"] == pytest.approx(100 / 3)
    assert any(
        note.startswith("measured again, withdrawn: against the baseline, decode_tokens_per_s: 100")
        for note in record["notes"]
    )
    assert stored["stats"]["rounds"] == 3


def test_a_real_slowdown_fails_and_the_record_says_confirmed(slowed):
    result, stored = slowed("--ewq-confirm", step_s=SLOW_S)
    record = stored["extra_info"]["ewq"]

    result.assert_outcomes(passed=1, failed=1)
    assert record["verdict"] == "fail"
    assert record["side"]["first_measurement"]["outcome"] == "confirmed"
    result.stdout.fnmatch_lines(["*decode_tokens_per_s: 100 -> 33.3333 tokens/s*"])


def test_without_the_option_a_slow_moment_fails(slowed):
    result, stored = slowed(step_s=SLOW_S, slow_calls=ONE_MEASUREMENT)
    result.assert_outcomes(passed=1, failed=1)
    assert "first_measurement" not in stored["extra_info"]["ewq"]["side"]


def test_what_fails_by_quality_is_not_measured_again(slowed):
    result, stored = slowed("--ewq-confirm", task="perplexity", noise=0.5)
    result.assert_outcomes(passed=1, failed=1)
    assert "first_measurement" not in stored["extra_info"]["ewq"]["side"]


def test_a_resumed_run_does_not_measure_a_third_time(bench, project):
    bench(*TWO, *SPEED, save=True)
    set_behaviour(project.path, **{"ewq_0.5": {"step_s": SLOW_S}})
    once = (*TWO[:2], *SPEED, *AGAINST_NEWEST, "--ewq-confirm")
    bench(*once).assert_outcomes(passed=1, failed=1)
    loads = (project.path / "loads.txt").read_text()
    bench(*once, "--ewq-resume").assert_outcomes(passed=1, failed=1)

    assert (project.path / "loads.txt").read_text() == loads
    assert finished(project.path / ".benchmarks" / "journal.sqlite")["ewq-0.5/throughput"] == 2
