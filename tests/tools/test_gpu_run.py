"""The steps of ``tools/gpu/run.sh`` and how a second call goes on; Python is a stand-in."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "gpu" / "run.sh"
PYTHON = r"""#!/usr/bin/env bash
echo "$@" >> "$CALLS"
case "$*" in
*-m\ pytest*--benchmark-json=*/${FAILING:-none}.json*) exit "${STATUS:-1}";;
*-m\ pytest*) for word in "$@"; do case "$word" in
    --benchmark-json=*) echo '{}' > "${word#*=}";;
    esac; done;;
*embedded_model*) echo /model;;
esac
"""


@pytest.fixture
def run(tmp_path):
    stand_in = tmp_path / "python"
    stand_in.write_text(PYTHON)
    stand_in.chmod(0o755)
    (tmp_path / "wheels").mkdir(exist_ok=True)

    def call(*steps, **environment):
        calls = tmp_path / "calls"
        calls.write_text("")
        given = os.environ | {"PYTHON": str(stand_in), "CALLS": str(calls), "DEVICE": "cpu"}
        command = ["bash", SCRIPT, tmp_path / "wheels", tmp_path / "out", *steps]
        done = subprocess.run(
            command, env=given | environment, capture_output=True, text=True, timeout=60
        )
        return done, calls.read_text().splitlines()

    return call


def test_every_step_runs_once(run):
    done, calls = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("finished\n")
    runs = [call for call in calls if "-m pytest" in call]
    names = ["embedded", "shape", "shape-eager", "shape-static", "shape-graph", "shape-compile"]
    names += ["agreement-gpu", "agreement-gpu-float32", "agreement-cpu"]
    assert [
        call.split("--benchmark-json=")[1].split("/out/")[1].split(".json")[0] for call in runs
    ] == names
    _, again = run()
    assert not [call for call in again if "-m pytest" in call]


def test_failing_gates_end_nothing(run):
    done, calls = run("embedded", "shape", FAILING="embedded", STATUS="1")
    assert done.returncode == 0
    assert len([call for call in calls if "-m pytest" in call]) == 2


def test_a_run_that_did_not_get_through_is_tried_again_and_the_rest_goes_on(run, tmp_path):
    done, calls = run("embedded", "shape", FAILING="embedded", STATUS="3")
    assert done.returncode == 1
    assert "not finished: embedded; call again" in done.stdout
    assert len([call for call in calls if "-m pytest" in call]) == 2
    journal = tmp_path / "out" / "work" / "runs" / "embedded" / "journal.jsonl"
    journal.parent.mkdir(parents=True)
    journal.write_text("")
    done, calls = run("embedded", "shape")
    assert done.returncode == 0
    [call] = [call for call in calls if "-m pytest" in call]
    assert "--ewq-resume" in call


def test_when_the_time_is_over_nothing_is_started(run):
    done, calls = run("embedded", LIMIT_S="5")
    assert done.returncode == 1
    assert "call again to go on" in done.stdout
    assert not [call for call in calls if "-m pytest" in call]


def test_parts_of_a_wheel_are_joined(run, tmp_path):
    wheel = tmp_path / "wheels" / "large-1.0-py3-none-any.whl"
    for number, text in enumerate(["one ", "two"]):
        wheel.with_name(f"{wheel.name}.part-0{number}").write_text(text)
    done, calls = run("install")
    assert done.returncode == 0
    assert wheel.read_text() == "one two"
    assert any("pip install" in call and wheel.name in call for call in calls)


def test_an_unknown_step_is_named_with_the_known_ones(run):
    done, _ = run("everything")
    assert done.returncode == 2
    assert "no step everything; install build ceilings" in done.stderr
