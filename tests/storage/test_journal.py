"""The journal: what is on disk stays, what is not counts as never written."""

import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from ewq.errors import EwqError, InputError
from ewq.storage.journal import PREVIOUS_JOURNAL, Journal
from tests import journal_worker
from tests.journal_worker import IDENTITY, KEYS, payload

A, B, C = KEYS[:3]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journals" / "run.sqlite"


def entries(path, kind):
    with closing(sqlite3.connect(path)) as file:
        return file.execute("SELECT variant, task FROM events WHERE kind = ?", [kind]).fetchall()


def test_a_resumed_journal_knows_what_is_done_and_what_crashed(path):
    with closing(Journal.create(path, IDENTITY)) as journal:
        journal.started(A)
        journal.finished(A, payload(A))
        journal.started(B)
        journal.failed(B, "out of memory")
        journal.started(C)

    with closing(Journal.resume(path, IDENTITY)) as journal:
        assert journal.completed == {A: payload(A)}
        assert +journal.crashes == {C[0]: 1}


def test_what_is_finished_in_a_second_attempt_is_done_and_the_crash_stays_counted(path):
    with closing(Journal.create(path, IDENTITY)) as journal:
        journal.started(A)
        journal.failed(A, "out of memory")
        journal.started(B)
    with closing(Journal.resume(path, IDENTITY)) as journal:
        for key in (A, B):
            journal.started(key)
            journal.finished(key, payload(key))
    with closing(Journal.resume(path, IDENTITY)) as journal:
        assert journal.completed.keys() == {A, B}
        assert +journal.crashes == {B[0]: 1}


def test_creating_replaces_the_journal_of_an_earlier_run(path):
    with closing(Journal.create(path, IDENTITY)) as journal:
        journal.finished(A, payload(A))
    with closing(Journal.create(path, IDENTITY)) as journal:
        assert journal.completed == {}
    with closing(Journal.resume(path, IDENTITY)) as journal:
        assert journal.completed == {}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fingerprint": "sha256:2"}, "measured another model"),
        ({"settings": {"tier": "full"}}, "setting tier was 'smoke', is 'full'"),
        ({"environment": {"device": "cpu", "ewq_code": "2"}}, "ewq_code was 1, is 2"),
        ({"environment": {"device": "cuda:0", "ewq_code": "1"}}, "measured on cpu and on cuda"),
    ],
    ids=["model", "settings", "code", "device"],
)
def test_a_run_of_something_else_is_refused_with_what_differs(path, changed, message):
    Journal.create(path, IDENTITY).close()
    before = path.read_bytes()

    with pytest.raises(InputError, match="cannot resume") as raised:
        Journal.resume(path, replace(IDENTITY, **changed))
    assert message in str(raised.value)
    assert path.read_bytes() == before


def test_a_library_that_was_not_there_may_have_come_but_may_not_change(path):
    def with_llama(version):
        environment = {**IDENTITY.environment, "llama-cpp-python": version}
        return replace(IDENTITY, environment=environment)

    Journal.create(path, with_llama(None)).close()
    Journal.resume(path, with_llama("0.3.36")).close()
    for other in ("0.3.37", None):
        with pytest.raises(InputError, match=f"llama-cpp-python was 0.3.36, is {other}"):
            Journal.resume(path, with_llama(other))


def test_data_that_only_a_resumed_run_read_must_not_change_either(path):
    Journal.create(path, IDENTITY).close()
    wider = replace(IDENTITY, settings={**IDENTITY.settings, "mmlu data": "sha256:1"})
    other = replace(IDENTITY, settings={**IDENTITY.settings, "mmlu data": "sha256:2"})
    Journal.resume(path, wider).close()
    Journal.resume(path, IDENTITY).close()

    with pytest.raises(InputError, match="setting mmlu data was 'sha256:1', is 'sha256:2'"):
        Journal.resume(path, other)


def test_resuming_nothing_is_an_error(path):
    with pytest.raises(InputError, match="nothing to resume"):
        Journal.resume(path, IDENTITY)


@pytest.mark.parametrize("opening", [Journal.create, Journal.resume])
def test_a_file_that_is_no_journal_is_refused(path, opening):
    path.parent.mkdir()
    path.write_text('{"benchmarks": []}\n')

    with pytest.raises(InputError, match="no journal"):
        opening(path, IDENTITY)
    assert path.read_text() == '{"benchmarks": []}\n'


def test_another_database_is_damaged_as_a_journal(path):
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE songs (title TEXT)")

    with pytest.raises(InputError, match=r"is damaged .*run without --ewq-resume"):
        Journal.resume(path, IDENTITY)


def test_killed_before_anything_was_written_it_starts_afresh(path):
    path.parent.mkdir()
    path.write_bytes(b"")

    with closing(Journal.resume(path, IDENTITY)) as journal:
        journal.finished(A, payload(A))
    with closing(Journal.resume(path, IDENTITY)) as journal:
        assert journal.completed.keys() == {A}


@pytest.mark.parametrize("opening", [Journal.create, Journal.resume])
def test_any_page_damaged_is_one_line_and_never_a_wrong_result(path, opening):
    with closing(Journal.create(path, IDENTITY)) as journal:
        for key in KEYS:
            journal.finished(key, payload(key))
    whole = path.read_bytes()
    for start in range(0, len(whole), 512):
        path.write_bytes(whole[:start] + b"\xff" * 512 + whole[start + 512 :])
        told = None
        try:
            with closing(opening(path, IDENTITY)) as journal:
                assert all(journal.completed[key] == payload(key) for key in journal.completed)
        except EwqError as error:
            told = str(error)
        assert told is None or re.search("damaged|malformed|no journal", told)


def test_two_runs_cannot_write_one_journal(path):
    with closing(Journal.create(path, IDENTITY)) as journal:
        journal.finished(A, payload(A))
        for opening in (Journal.create, Journal.resume):
            with pytest.raises(EwqError, match="in use by another run"):
                opening(path, IDENTITY)
    with closing(Journal.resume(path, IDENTITY)) as journal:
        assert journal.completed.keys() == {A}


def test_a_second_run_neither_moves_nor_empties_a_journal_in_use(path):
    previous = path.with_name(PREVIOUS_JOURNAL)
    with closing(Journal.create(path, IDENTITY)) as journal:
        journal.started(A)
        with pytest.raises(EwqError, match="in use by another run"):
            Journal.create(path, IDENTITY)
        journal.finished(A, {})

    assert not previous.exists()
    assert entries(path, "finished") == [A]


def test_the_journal_that_a_new_one_replaces_is_kept(path):
    previous = path.with_name(PREVIOUS_JOURNAL)
    with closing(Journal.create(path, IDENTITY)) as journal:
        journal.finished(A, {})
    Journal.create(path, IDENTITY).close()

    assert entries(previous, "finished") == [A]
    assert entries(path, "finished") == []


def test_a_journal_that_is_not_kept_leaves_no_file(path):
    with closing(Journal.unkept(IDENTITY)) as journal:
        journal.started(A)
        journal.finished(A, {"value": 1})

    assert journal.completed == {A: {"value": 1}}
    assert not path.parent.exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), object()])
def test_what_is_not_json_is_refused_and_leaves_no_trace(path, bad):
    with closing(Journal.create(path, IDENTITY)) as journal:
        with pytest.raises(EwqError, match="not plain JSON"):
            journal.finished(A, {"value": bad})
        assert A not in journal.completed
    assert entries(path, "finished") == []


@pytest.mark.parametrize("place", ["file/run.sqlite", "folder"])
def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(EwqError, match=r"cannot open the journal .*: "):
        Journal.create(tmp_path / place, IDENTITY)


def test_a_disk_that_fills_up_loses_nothing_written_before(path):
    with closing(Journal.create(path, IDENTITY)) as journal:
        journal.finished(A, payload(A))
        pages = journal._file.execute("PRAGMA page_count").fetchone()[0]
        journal._file.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(EwqError, match=r"disk is full.*1 finished measurements are kept"):
            journal.finished(B, {"items": "B" * 50_000})
        assert B not in journal.completed
        journal._file.execute("PRAGMA max_page_count = 10000")
        journal.finished(B, payload(B))
    with closing(Journal.resume(path, IDENTITY)) as journal:
        assert journal.completed == {A: payload(A), B: payload(B)}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KB; mounting one takes root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small tmpfs takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_full_disk_is_a_clear_error_and_freeing_space_lets_the_run_go_on(small_disk):
    path = small_disk / "run.sqlite"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * 16384)
    with pytest.raises(EwqError, match=r"disk is full.*then resume"):
        journal_worker.main(path)
    with closing(Journal.resume(path, IDENTITY)) as journal:
        kept = set(journal.completed)
    assert kept
    ballast.unlink()

    with closing(Journal.resume(path, IDENTITY)) as journal:
        assert set(journal.completed) == kept
        rest = [key for key in KEYS if key not in kept]
        journal.finished(rest[0], payload(rest[0]))
    with closing(Journal.resume(path, IDENTITY)) as journal:
        assert set(journal.completed) == kept | {rest[0]}


def run_for(path, seconds):
    """Run the worker and kill it so long after its imports; whether it was still alive then."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    command = [sys.executable, journal_worker.__file__, str(path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as worker:
        assert worker.stdout.readline() == b"ready\n"
        time.sleep(seconds)
        worker.kill()
    return worker.returncode == -signal.SIGKILL


def test_killed_at_twenty_random_moments_nothing_is_lost_or_repeated(tmp_path):
    moments = random.Random(7)
    path, killed, runs, seen = tmp_path / "0.sqlite", 0, 0, set()
    while killed < 20 or len(seen) < 3:
        killed += run_for(path, moments.uniform(0, 0.1))
        seen.add(number_finished(path))
        if number_finished(path) == len(KEYS):
            runs += 1
            check_complete(path)
            path = tmp_path / f"{runs}.sqlite"
    journal_worker.main(path)
    check_complete(path)


def number_finished(path):
    if not path.exists():
        return 0
    with closing(Journal.resume(path, IDENTITY)) as journal:
        return len(journal.completed)


def check_complete(path):
    with closing(Journal.resume(path, IDENTITY)) as journal:
        assert journal.completed == {key: payload(key) for key in KEYS}
    assert Counter(entries(path, "finished")) == dict.fromkeys(KEYS, 1)
