"""Nothing measured is lost: kill -9, a full disk, an error and a native crash, on fake models."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress

import pytest
import transformers.modeling_utils  # noqa: F401 - torch parts of it cannot be imported twice

from ewq.storage.environment import RunIdentity
from ewq.storage.journal import JOURNAL, PREVIOUS_JOURNAL, Journal
from tests.harness.fakes import REPOSITORY, TASKS, finished, set_behaviour, write_project
from tests.harness.warm_pytest import WarmPytest

KILLS = int(os.environ.get("EWQ_TEST_KILLS", "3"))
"""Random moments to kill at; the nightly job takes 20."""
TWO = ("--ewq-variants", "fp16,ewq-0.5", "--benchmark-autosave")
CLOCKED = {"throughput", "memory"}
"""Tasks whose figures differ from run to run."""


def comparable(record):
    """A record without what no two runs share."""
    kept = {key: record[key] for key in ("variant", "task", "settings", "items", "plan", "tier")}
    names = sorted(record["metrics"])
    return kept | {"metrics": names if record["task"] in CLOCKED else record["metrics"]}


def run_files(project):
    return sorted(project.path.glob(".benchmarks/*/*.json"))


def test_a_run_stored_in_a_file_elsewhere_is_finished_too(bench, project, tmp_path):
    stored = tmp_path / "elsewhere" / "run.json"
    stored.parent.mkdir()
    result = bench(*TWO[:2], f"--benchmark-json={stored}")
    assert result.ret == 0
    assert json.loads(stored.read_text())["ewq"]["complete"]
    result.stdout.fnmatch_lines([f"saved: {stored}"])
    assert not (project.path / ".benchmarks" / JOURNAL).exists()


def run(folder, *extra, kill_after_s=None):
    """One run of the project in ``folder``; its exit status, or minus the signal that ended it."""
    options = ["-q", "-p", "ewq.pytest_plugin", "-p", "no:cacheprovider", "benchmarks"]
    with (folder / "output.txt").open("w") as output:
        command = [sys.executable, "-mpytest", *options, "--ewq-tier", "smoke", *TWO, *extra]
        process = WarmPytest(command, output, output, cwd=folder)
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            process.kill()
        return process.wait()


def stored(folder):
    """``variant/task`` -> what is comparable of its record in the newest whole stored run."""
    for path in sorted(folder.glob(".benchmarks/*/*.json"), reverse=True):
        with suppress(ValueError):
            records = (
                each["extra_info"]["ewq"] for each in json.loads(path.read_text())["benchmarks"]
            )
            return {f"{each['variant']}/{each['task']}": comparable(each) for each in records}
    return {}


def test_killed_at_random_moments_and_resumed_the_result_is_that_of_an_uninterrupted_run(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("EWQ_CACHE", str(tmp_path / "cache"))

    def project(name):
        folder = tmp_path / name
        folder.mkdir()
        write_project(folder, **{"ewq-0.5": {"noise": 0.3}})
        return folder

    # Starting the warm process is no part of the duration.
    assert run(tmp_path, "--version") == 0
    moments = random.Random(11)
    reference = project("uninterrupted")
    started_s = time.monotonic()
    assert run(reference) == 0
    duration_s = time.monotonic() - started_s
    expected = stored(reference)
    assert len(expected) == 2 * TASKS + 1
    killed = attempt = 0
    while killed < KILLS:
        attempt += 1
        folder = project(f"killed-{attempt}")
        killed += run(folder, kill_after_s=moments.uniform(0, duration_s)) == -signal.SIGKILL
        begun = (folder / ".benchmarks" / JOURNAL).is_file()
        assert run(folder, *(["--ewq-resume"] if begun else [])) == 0, attempt
        counts = finished(folder / ".benchmarks" / PREVIOUS_JOURNAL)
        assert counts == dict.fromkeys(expected, 1), attempt
        assert stored(folder) == expected, attempt


def test_a_full_disk_is_told_and_resuming_after_freeing_space_completes_the_run(bench, project):
    storage = project.path / ".benchmarks"
    storage.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(storage)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs takes root")
    try:
        full = bench(*TWO[:2], subprocess="forked")
        assert full.ret != 0
        full.stdout.fnmatch_lines(["*cannot write the journal (database or disk is full)*resume*"])
        kept = finished(storage / JOURNAL).total()
        grow = ["mount", "-o", "remount,size=8m", str(storage)]
        subprocess.run(grow, check=True)
        bench(*TWO, "--ewq-resume").assert_outcomes(passed=2 * TASKS + 1)
        assert 0 < kept < 2 * TASKS + 1
        counts = finished(storage / PREVIOUS_JOURNAL)
        assert counts.total() == len(counts) == 2 * TASKS + 1
    finally:
        subprocess.run(["umount", str(storage)], check=True)


def test_a_native_crash_leaves_the_results_of_the_others(bench, project):
    select = ("-k", "memory")
    variants = ("--ewq-variants", "fp16,ewq-0.5,ewq-1.0", "--benchmark-autosave")
    set_behaviour(project.path, **{"ewq-0.5": {"kill": "SIGSEGV"}})
    for attempt in ((), ("--ewq-resume",), ("--ewq-resume",)):
        assert bench(*variants, *select, *attempt, subprocess="forked").ret < 0
    result = bench(*variants, *select, "--ewq-resume")

    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*ewq-0.5 crashed the process 3 times; skipping memory*"])
    run = json.loads(run_files(project)[-1].read_text())
    assert {each["params"]["variant"] for each in run["benchmarks"]} == {"fp16", "ewq-1.0"}
    assert run["ewq"]["complete"] is False


def test_an_interrupted_run_is_stored_and_finished_by_resuming(bench, project):
    select = ("-k", "perplexity", *TWO)
    set_behaviour(project.path, **{"ewq-0.5": {"interrupted": True}})
    interrupted = bench(*select, subprocess="forked")
    set_behaviour(project.path)
    bench(*select, "--ewq-resume").assert_outcomes(passed=2)

    assert interrupted.ret == pytest.ExitCode.INTERRUPTED
    assert "Traceback" not in interrupted.stderr.str()
    assert [json.loads(run.read_text())["ewq"]["complete"] for run in run_files(project)] == [
        False,
        True,
    ]


def test_resuming_after_the_failure_is_mended_measures_only_what_failed(bench, project):
    select = ("-k", "memory or perplexity")
    set_behaviour(project.path, **{"ewq-0.5": {"error": "out of memory"}})
    bench(*TWO, *select).assert_outcomes(passed=2, failed=2)
    (project.path / "loads.txt").unlink()
    set_behaviour(project.path)
    bench(*TWO, *select, "--ewq-resume").assert_outcomes(passed=4)

    assert (project.path / "loads.txt").read_text().split().count("ewq-0.5") == 1
    assert json.loads(run_files(project)[-1].read_text())["ewq"]["complete"] is True


def test_resuming_on_other_texts_is_refused_before_any_load(bench, project):
    texts = project.mkdir("texts")
    (texts / "essay.txt").write_text("The old bridge over the river was closed. " * 40)
    select = ("--ewq-variants", "fp16", "-k", "perplexity", "--ewq-texts", "texts")
    bench(*select).assert_outcomes(passed=1)
    (project.path / "loads.txt").unlink()
    (texts / "essay.txt").write_text("A new bridge over the river was opened. " * 40)
    result = bench(*select, "--ewq-resume")

    assert result.ret == 4
    result.stdout.fnmatch_lines(["*cannot resume*setting perplexity data was *"])
    assert not (project.path / "loads.txt").exists()


@pytest.mark.parametrize("changed", ["cpu", "cores"])
def test_resuming_on_another_machine_is_refused(bench, project, changed):
    bench("--ewq-variants", "fp16", "-k", "memory").assert_outcomes(passed=1)
    with closing(sqlite3.connect(project.path / ".benchmarks" / JOURNAL)) as journal:
        change = f"json_set(json, '$.environment.{changed}', 'another')"
        journal.execute(f"UPDATE identity SET json = {change}")
        journal.commit()
    result = bench("--ewq-variants", "fp16", "-k", "memory", "--ewq-resume")

    assert result.ret == 4
    result.stdout.fnmatch_lines([f"*cannot resume*another {changed}: another and *"])


def test_a_second_run_in_the_same_storage_is_refused_and_spoils_nothing(bench, project):
    path = project.path / ".benchmarks" / JOURNAL
    identity = RunIdentity("sha256:1", {}, {})
    with closing(Journal.create(path, identity)) as first:
        first.finished(("fp16", "memory"), {})
        result = bench("--ewq-variants", "fp16", "-k", "memory", subprocess="forked")

    assert result.ret == 3
    result.stdout.fnmatch_lines(["*journal.sqlite is in use by another run*"])
    with closing(Journal.resume(path, identity)) as journal:
        assert journal.completed == {("fp16", "memory"): {}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ewq-tier", "quick"], "*cannot resume*tier was 'smoke', is 'quick'*"),
        (["--ewq-dtype", "float16"], "*cannot resume*setting dtype was *"),
    ],
    ids=["tier", "dtype"],
)
def test_resuming_something_else_is_refused_before_any_load(bench, project, arguments, message):
    select = ("-k", "memory")
    bench("--ewq-variants", "fp16", *select).assert_outcomes(passed=1)
    (project.path / "loads.txt").unlink()
    result = bench("--ewq-variants", "fp16", *select, "--ewq-resume", *arguments)

    assert result.ret == 4
    result.stdout.fnmatch_lines([message])
    assert not (project.path / "loads.txt").exists()


def test_a_file_that_has_changed_is_measured_again(bench, project):
    select = ("-k", "memory or perplexity", "--ewq-variants", "fp16,own.gguf,ewq-0.5")
    file = project.path / "own.gguf"
    file.write_bytes(b"before")
    set_behaviour(project.path, **{"ewq-0.5": {"error": "out of memory"}})
    bench(*select)
    set_behaviour(project.path)
    for content, loads in ((b"before", 0), (b"after", 1)):
        file.write_bytes(content)
        (project.path / "loads.txt").unlink()
        bench(*select, "--ewq-resume", "--ewq-no-save").assert_outcomes(passed=6)
        loaded = project.path / "loads.txt"
        assert (loaded.read_text() if loaded.exists() else "").split().count("own.gguf") == loads
        loaded.touch()
