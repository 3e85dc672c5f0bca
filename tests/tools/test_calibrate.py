import importlib
import math
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from ewq.storage.runs import read_run
from tests.make_runs import GPU, NOISY, metric, record, stored_run

SCRIPT = Path(__file__).parents[2] / "tools" / "calibrate.py"
SPEEDS = (100.0, 104.0, 96.0)


def throughput(variant, value):
    metrics = {"decode_tokens_per_s": metric(value, stderr=1, n=5, unit="tokens/s")}
    return record("throughput", variant, metrics)


@pytest.fixture
def repeats(tmp_path):
    """Three runs in which fp16 varies by 4 % and the other variant not at all."""
    return [
        stored_run(
            tmp_path,
            [
                throughput("fp16", speed),
                throughput("ewq-0.5", 50),
                record("mmlu", "fp16", {"accuracy": metric(0.5)}),
            ],
            number=number,
        )
        for number, speed in enumerate(SPEEDS, start=1)
    ]


def calibrate(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_most_variable_variant_sets_the_tolerance(repeats):
    done = calibrate(*repeats)

    # The logarithms' sd is 0.040: three of a difference are a factor of exp(-0.170) = 0.844.
    assert math.isclose(math.exp(-3 * math.sqrt(2) * 0.04), 0.844, abs_tol=1e-3)
    row = "| throughput | decode_tokens_per_s | fp16 | 3 | 100 | 4 | 4.000% | 8 | relative 0.16 |"
    assert row in done.stdout


def test_what_repeats_exactly_keeps_the_built_in_tolerance(repeats):
    assert "| mmlu | accuracy | fp16 | 3 | 0.5 | 0 | 0.000% | 0 | absolute 0.005 |" in (
        calibrate(*repeats).stdout
    )


def test_what_a_run_itself_calls_noisy_does_not_widen_the_tolerance(repeats, tmp_path):
    noisy = throughput("fp16", 10)
    noisy = replace(noisy, doubts=NOISY)
    records = [noisy, throughput("ewq-0.5", 50), record("mmlu", "fp16", {"accuracy": metric(0.5)})]
    done = calibrate(*repeats, stored_run(tmp_path, records, number=9))

    assert "| decode_tokens_per_s | fp16 | 3 | 100 | 4 |" in done.stdout


@pytest.fixture
def page(repeats, tmp_path, monkeypatch):
    """The page of three speed runs and of quality runs with these values of one variant."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    report = importlib.import_module("calibration.report")

    def write(*values):
        quality = [
            read_run(stored_run(tmp_path / "quality", [perplexity(value)], number=number))
            for number, value in enumerate(values)
        ]
        return report.document([read_run(path) for path in repeats], quality, 600.0, "command")

    return write


def perplexity(ln_ratio):
    metrics = {"ln_ppl_ratio": metric(ln_ratio, stderr=0.01, n=900, better=False, unit="nats")}
    return record("perplexity", "bnb-nf4", metrics)


def test_the_page_shows_equality_errors_and_what_is_too_tight(page):
    text = page(0.2, 0.2)

    assert "2 processes gave 1 metrics and the items of 1 measurements equal" in text
    # The shipped limit of 0.35 is (0.35 - 0.2) / 0.01 errors away.
    assert "| bnb-nf4 | perplexity | ln_ppl_ratio | 0.2 | 0.01 | 900 | max 0.35 | 15.0 |" in text
    assert "| throughput | decode_tokens_per_s | relative 0.16 | 10.00% | **too tight** |" in text
    assert "| mmlu | accuracy | absolute 0.005 | 0.005 | holds |" in text


def test_the_page_names_what_moved(page):
    text = page(0.2, 0.2000001)

    assert "2 processes gave different values of:\n\n- bnb-nf4/perplexity: ln_ppl_ratio" in text


def test_the_tables_are_valid_thresholds(repeats):
    tables = tomllib.loads(calibrate(*repeats, "--toml").stdout)

    assert tables["tolerance"]["throughput"] == {"decode_tokens_per_s": {"relative": 0.16}}


def test_too_few_runs_are_refused(repeats):
    done = calibrate(*repeats[:2])

    assert done.returncode == 1
    assert "2 runs tell nothing about variance" in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"machine": GPU | {"gpu": "L4"}}, "another gpu"),
        ({"machine": GPU | {"ewq_code": "sha256:2"}}, "measured by other code"),
        ({"records": [throughput("fp16", 1)]}, "measured other benchmarks"),
    ],
    ids=["another GPU", "other code", "another selection"],
)
def test_runs_that_are_no_repetitions_are_refused(repeats, tmp_path, changes, message):
    records = [
        throughput("fp16", 100),
        throughput("ewq-0.5", 50),
        record("mmlu", "fp16", {"accuracy": metric(0.5)}),
    ]
    odd = stored_run(tmp_path, **({"records": records, "number": 9} | changes))
    done = calibrate(*repeats, odd)

    assert done.returncode == 1
    assert message in done.stderr
