"""The shell steps of the GPU workflow, run as the workflow runs them, in a scratch repository.

``pytest`` and ``gh`` are stand-ins that record how they were called; ``ewq compare`` is real.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.make_runs import metric, record, stored_run

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / ".github" / "scripts" / "gpu-gate.sh"
WORKFLOWS = ROOT / ".github" / "workflows"

PYTHON = """#!/usr/bin/env bash
if [[ $2 == pytest ]]; then
  echo "$@" >> "$CALLS"
  if [[ -f $NEXT_RUN ]]; then cp "$NEXT_RUN" "$EWQ_STORAGE/machine/0002_head_20260102.json"; fi
  exit "${PYTEST_STATUS:-0}"
fi
exec "$REAL_PYTHON" "$@"
"""
GH = """#!/usr/bin/env bash
echo "gh $*" | tr '\\n' ' ' | tr -s ' ' >> "$CALLS"
echo >> "$CALLS"
if [[ "$*" == *--paginate* ]]; then printf '%s' "${COMMENTS:-}"; fi
"""


class Gate:
    """A project with a stored run of the base commit, and the steps to gate the next commit."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.out = folder / "gate"
        self.calls = folder / "calls"
        self.environment = os.environ | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "REAL_PYTHON": sys.executable,
            "CALLS": str(self.calls),
            "NEXT_RUN": str(folder / "next.json"),
            "EWQ_STORAGE": str(folder / ".benchmarks"),
            "EWQ_OUT": str(self.out),
            "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
            "PULL_REQUEST": "17",
            "GITHUB_REPOSITORY": "org/project",
        }
        (folder / "bin").mkdir()
        for name, text in (("python", PYTHON), ("gh", GH)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        self.git("init", "-q")
        self.base, self.head = self.commit("base"), self.commit("head")
        (folder / ".benchmarks" / "machine").mkdir(parents=True)

    def git(self, *arguments):
        command = ["git", "-c", "user.name=n", "-c", "user.email=e", *arguments]
        done = subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def commit(self, message):
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def store_base(self, value):
        self._run(value, self.base, day=1).rename(
            self.folder / ".benchmarks" / "machine" / "0001_base_20260101.json"
        )

    def will_measure(self, value, **session):
        self._run(value, self.head, day=2, session=session).rename(self.folder / "next.json")

    def _run(self, value, commit, **changes):
        metrics = {"weights_bytes": metric(value, n=1, better=False, unit="bytes")}
        each = record("memory", metrics=metrics)
        return stored_run(self.folder / "made", [each], commit=commit, **changes)

    def step(self, name, **environment):
        return subprocess.run(
            ["bash", str(SCRIPT), name],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def job(self, **environment):
        """All steps in the workflow's order; the exit code of the last, which decides."""
        for name in ("measure", "compare", "comment"):
            self.step(name, **environment)
        return self.step("verdict", **environment)


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


def test_the_same_figures_pass(gate):
    gate.store_base(1000)
    gate.will_measure(1000)
    verdict = gate.job()

    assert (verdict.returncode, verdict.stdout) == (0, "no regression\n")
    assert (gate.out / "comment.md").read_text().startswith("### ewq: no change")


def test_a_regression_fails_the_job_and_every_report_is_there(gate):
    gate.store_base(1000)
    gate.will_measure(1100)
    verdict = gate.job()

    assert verdict.returncode == 1
    assert "::error::a metric got worse" in verdict.stdout
    assert "| ewq-0.65 | memory weights\\_bytes | fail |" in (gate.out / "comment.md").read_text()
    assert {path.name for path in gate.out.iterdir()} >= {
        "comment.md",
        "compare.json",
        "compare.html",
        "run.json",
    }
    assert (gate.folder / "summary.md").read_text() == (gate.out / "comment.md").read_text()


def test_the_benchmarks_are_run_and_the_comment_made_as_documented(gate):
    gate.store_base(1000)
    gate.will_measure(1000)
    gate.job(EWQ_MODEL="org/model", EWQ_RESUME="true", EWQ_REQUIRE_BASELINE="true")
    measured, searched, commented = gate.calls.read_text().splitlines()

    assert measured.startswith("-m pytest benchmarks/ -k ewq --benchmark-autosave")
    assert "--ewq-baseline=ancestor" in measured
    assert "--ewq-model=org/model --ewq-require-baseline --ewq-resume" in measured
    assert searched.startswith("gh api --paginate repos/org/project/issues/17/comments --jq ")
    assert commented.rstrip() == (
        "gh api --silent --method POST repos/org/project/issues/17/comments "
        f"--field body=@{gate.out}/comment.md"
    )


def test_an_earlier_comment_of_the_gate_is_renewed(gate):
    gate.store_base(1000)
    gate.will_measure(1000)
    gate.job(COMMENTS="4\n71\n")

    assert gate.calls.read_text().splitlines()[-1].rstrip() == (
        "gh api --silent --method PATCH repos/org/project/issues/comments/71 "
        f"--field body=@{gate.out}/comment.md"
    )


def test_a_failed_gate_is_still_compared_and_fails_the_job(gate):
    gate.store_base(1000)
    gate.will_measure(1000)
    measured = gate.step("measure", PYTEST_STATUS="1")
    gate.step("compare")
    verdict = gate.step("verdict")

    assert measured.returncode == 0
    assert (gate.out / "comment.md").is_file()
    assert verdict.returncode == 1
    assert "::error::a gate failed" in verdict.stdout


@pytest.mark.parametrize("status", ["2", "3", "4", "137"])
def test_a_run_that_could_not_be_made_stops_the_job_at_once(gate, status):
    gate.store_base(1000)
    measured = gate.step("measure", PYTEST_STATUS=status)

    assert measured.returncode == int(status)
    assert "::error::the benchmarks could not be run" in measured.stdout
    assert gate.step("compare").returncode == 0
    assert "no run was stored" in (gate.out / "comment.md").read_text()
    assert gate.step("verdict").returncode == 1


@pytest.mark.parametrize(
    ("require", "exit_code"), [("", 0), ("true", 1)], ids=["tolerated", "required"]
)
def test_without_a_baseline_the_job_says_so(gate, require, exit_code):
    gate.will_measure(1000)
    verdict = gate.job(EWQ_REQUIRE_BASELINE=require)

    assert verdict.returncode == exit_code
    assert "### ewq: not comparable" in (gate.out / "comment.md").read_text()
    assert "none of the 0 stored runs" in (gate.out / "comment.md").read_text()


def test_a_partial_run_of_the_base_is_no_baseline(gate):
    gate.store_base(1000)
    stored = gate.folder / ".benchmarks" / "machine" / "0001_base_20260101.json"
    stored.write_text(stored.read_text().replace('"complete": true', '"complete": false'))
    gate.will_measure(5000)

    assert gate.job().returncode == 0
    assert "partial" in (gate.out / "comment.md").read_text()


def test_a_stale_report_of_an_earlier_job_is_never_reused(gate):
    gate.store_base(1000)
    gate.will_measure(1000)
    gate.job()
    (gate.folder / "next.json").unlink()
    gate.step("measure", PYTEST_STATUS="3")
    gate.step("compare")

    assert "no run was stored" in (gate.out / "comment.md").read_text()


def test_an_unknown_step_is_a_usage_error(gate):
    assert gate.step("fly").returncode == 2


@pytest.mark.parametrize(
    "path",
    [*sorted(WORKFLOWS.glob("*.yml")), ROOT / "ewq" / "cli" / "project" / "workflow.yml.txt"],
    ids=lambda path: path.stem,
)
def test_workflows_use_existing_scripts_and_no_event_text_in_shell(path):
    """Text that others write (titles, branch names) must never become part of a command."""
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]

    assert commands
    for command in commands:
        assert "${{" not in command
        for script in re.findall(r"\.(?:github|ci)/\S+", command):
            assert os.access(ROOT / script, os.X_OK), script


def test_the_gate_never_runs_code_of_forks_on_the_own_machine():
    gate = yaml.safe_load((WORKFLOWS / "gpu-gate.yml").read_text())["jobs"]["gate"]

    assert "head.repo.full_name == github.repository" in gate["if"]
    assert "self-hosted" in gate["runs-on"]


def test_no_token_may_write_where_the_code_under_test_runs():
    workflow = yaml.safe_load((WORKFLOWS / "gpu-gate.yml").read_text())
    jobs = workflow["jobs"]
    writing = {name for name, job in jobs.items() if "write" in job.get("permissions", {}).values()}

    assert workflow["permissions"] == {"contents": "read"}
    assert writing == {"comment"}
    assert "self-hosted" not in jobs["comment"]["runs-on"]
    assert jobs["comment"]["steps"][0]["with"]["ref"] == (
        "${{ github.event.pull_request.base.sha }}"
    )
    assert "github.token" not in str(jobs["gate"])
