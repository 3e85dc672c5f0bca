import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from ewq.errors import EwqError, InputError
from ewq.storage.journal import Journal
from tests import journal_worker
from tests.journal_worker import HEADER, KEYS, payload

A, B, C = KEYS[:3]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journals" / "run.jsonl"


def entries(path, kind):
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    return [tuple(line["key"]) for line in lines if line["kind"] == kind]


def test_a_resumed_journal_knows_what_is_done_failed_and_crashed(path):
    with Journal.create(path, HEADER) as journal:
        journal.started(A)
        journal.finished(A, payload(A))
        journal.started(B)
        journal.failed(B, "out of memory")
        journal.started(C)

    with Journal.resume(path, HEADER) as journal:
        assert journal.completed == {A: payload(A)}
        assert journal.failures == {B: "out of memory"}
        assert journal.crashed == {C}
        assert journal.attempts == {A: 1, B: 1, C: 1}


def test_a_second_attempt_clears_failure_and_crash(path):
    with Journal.create(path, HEADER) as journal:
        journal.started(A)
        journal.failed(A, "out of memory")
        journal.started(B)
    with Journal.resume(path, HEADER) as journal:
        for key in (A, B):
            journal.started(key)
            journal.finished(key, payload(key))
    with Journal.resume(path, HEADER) as journal:
        assert journal.completed.keys() == {A, B}
        assert journal.failures == {}
        assert journal.crashed == set()
        assert journal.attempts == {A: 2, B: 2}


def test_creating_replaces_the_journal_of_an_earlier_run(path):
    with Journal.create(path, HEADER) as journal:
        journal.finished(A, payload(A))
    with Journal.create(path, HEADER) as journal:
        assert journal.completed == {}
    with Journal.resume(path, HEADER) as journal:
        assert journal.completed == {}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fingerprint": "sha256:2"}, "fingerprint was 'sha256:1', is 'sha256:2'"),
        ({"settings": {"tier": "full"}}, "settings was {'tier': 'smoke'}, is {'tier': 'full'}"),
        ({"code": "2"}, "code was '1', is '2'"),
        ({"device": "cuda:0"}, "device was 'cpu', is 'cuda:0'"),
        ({"extra": 1}, "extra was None, is 1"),
    ],
    ids=["model", "settings", "code", "device", "new key"],
)
def test_a_run_of_something_else_is_refused_with_what_differs(path, changed, message):
    Journal.create(path, HEADER).close()
    before = path.read_bytes()

    with pytest.raises(InputError, match="cannot resume") as raised:
        Journal.resume(path, HEADER | changed)
    assert message in str(raised.value)
    assert path.read_bytes() == before


def test_a_header_survives_json(path):
    """Tuples become lists on disk; that alone is no difference."""
    header = {"selected": (("fp16", "mmlu"),)}
    Journal.create(path, header).close()

    Journal.resume(path, header).close()


def test_resuming_nothing_is_an_error(path):
    with pytest.raises(InputError, match="nothing to resume"):
        Journal.resume(path, HEADER)


def test_a_file_that_is_no_journal_is_refused(path):
    path.parent.mkdir()
    path.write_text('{"benchmarks": []}\n')

    with pytest.raises(InputError, match="not a journal"):
        Journal.resume(path, HEADER)
    assert path.read_text() == '{"benchmarks": []}\n'


def test_cut_off_at_any_byte_only_the_line_being_written_is_lost(path):
    """What a power loss leaves: some prefix of the file, resumed and finished."""
    with Journal.create(path, HEADER) as journal:
        for key in (A, B):
            journal.started(key)
            journal.finished(key, {"value": key[0]})
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        with Journal.resume(path, HEADER) as journal:
            whole_lines = whole[:size].rpartition(b"\n")[0]
            assert len(journal.completed) == whole_lines.count(b'"finished"')
            assert set(journal.completed) <= {A, B}
            journal.finished(C, {"value": "C"})
        with Journal.resume(path, HEADER) as journal:
            assert journal.completed[C] == {"value": "C"}


def test_a_torn_block_of_zeros_at_the_end_counts_as_never_written(path):
    with Journal.create(path, HEADER) as journal:
        journal.finished(A, payload(A))
    with path.open("ab") as stream:
        stream.write(b"\0" * 512)

    with Journal.resume(path, HEADER) as journal:
        assert journal.completed.keys() == {A}


def test_damage_before_the_end_is_an_error_that_names_the_line(path):
    with Journal.create(path, HEADER) as journal:
        journal.finished(A, payload(A))
        journal.finished(B, payload(B))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:100] + b"\n" + lines[2])

    with pytest.raises(InputError, match="line 2 is damaged"):
        Journal.resume(path, HEADER)


def test_two_runs_cannot_write_one_journal(path):
    with Journal.create(path, HEADER) as journal:
        journal.finished(A, payload(A))
        for opening in (Journal.create, Journal.resume):
            with pytest.raises(EwqError, match="in use by another run"):
                opening(path, HEADER)
    with Journal.resume(path, HEADER) as journal:
        assert journal.completed.keys() == {A}


def test_a_second_run_neither_moves_nor_empties_a_journal_in_use(path, tmp_path):
    previous = tmp_path / "previous.jsonl"
    with Journal.create(path, HEADER, previous) as journal:
        journal.started(A)
        with pytest.raises(EwqError, match="in use by another run"):
            Journal.create(path, HEADER, previous)
        journal.finished(A, {})

    assert not previous.exists()
    assert entries(path, "finished") == [A]


def test_the_journal_that_a_new_one_replaces_is_kept(path, tmp_path):
    previous = tmp_path / "previous.jsonl"
    with Journal.create(path, HEADER, previous) as journal:
        journal.finished(A, {})
    Journal.create(path, HEADER, previous).close()

    assert entries(previous, "finished") == [A]
    assert entries(path, "finished") == []


def test_a_journal_that_is_not_kept_leaves_no_file(path):
    with Journal.unkept(HEADER) as journal:
        journal.started(A)
        journal.finished(A, {"value": 1})

    assert journal.completed == {A: {"value": 1}}
    assert not path.parent.exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), object()])
def test_what_is_not_json_is_refused_and_leaves_no_trace(path, bad):
    with Journal.create(path, HEADER) as journal:
        before = path.read_bytes()
        with pytest.raises(EwqError, match="not plain JSON"):
            journal.finished(A, {"value": bad})
        assert A not in journal.completed
    assert path.read_bytes() == before


@pytest.mark.parametrize("place", ["file/run.jsonl", "folder"])
def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(EwqError, match=r"cannot (make|open) .*: "):
        Journal.create(tmp_path / place, HEADER)


def test_discarding_deletes_the_file(path):
    journal = Journal.create(path, HEADER)
    journal.discard()
    journal.discard()

    assert not path.exists()


class FillingDisk:
    """A stream of which only the first bytes fit; the rest fails as a full disk does."""

    def __init__(self, stream, room):
        self.stream, self.room = stream, room

    def write(self, data):
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fits = min(self.room, len(data))
        self.room -= fits
        return self.stream.write(data[:fits])

    def __getattr__(self, name):
        return getattr(self.stream, name)


@pytest.mark.parametrize("room", [0, 1, 50, 3000])
def test_a_disk_that_fills_up_loses_nothing_written_before(path, room):
    with Journal.create(path, HEADER) as journal:
        journal.finished(A, payload(A))
        before = path.read_bytes()
        journal._stream = FillingDisk(journal._stream, room)
        with pytest.raises(EwqError, match=r"No space left.*1 finished measurements are kept"):
            journal.finished(B, payload(B))
        assert path.read_bytes() == before
        journal._stream.room = 10**6
        journal.finished(B, payload(B))
    with Journal.resume(path, HEADER) as journal:
        assert journal.completed == {A: payload(A), B: payload(B)}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 KB; mounting one takes root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small tmpfs takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_full_disk_is_a_clear_error_and_freeing_space_lets_the_run_go_on(small_disk):
    path = small_disk / "run.jsonl"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * 8192)
    with pytest.raises(EwqError, match=r"No space left on device.*then resume"):
        journal_worker.main(path)
    with Journal.resume(path, HEADER) as journal:
        kept = set(journal.completed)
    assert kept
    ballast.unlink()

    with Journal.resume(path, HEADER) as journal:
        assert set(journal.completed) == kept
        rest = [key for key in KEYS if key not in kept]
        journal.finished(rest[0], payload(rest[0]))
    with Journal.resume(path, HEADER) as journal:
        assert set(journal.completed) == kept | {rest[0]}


def run_for(path, seconds):
    """Run the worker and kill it after so long; whether it was still alive then."""
    worker = subprocess.Popen(
        [sys.executable, journal_worker.__file__, str(path)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent.parent)},
    )
    time.sleep(seconds)
    alive = worker.poll() is None
    with contextlib.suppress(ProcessLookupError):
        worker.send_signal(signal.SIGKILL)
    worker.wait()
    return alive


def test_killed_at_twenty_random_moments_nothing_is_lost_or_repeated(tmp_path):
    moments = random.Random(7)
    path, killed, runs = tmp_path / "0.jsonl", 0, 0
    while killed < 20:
        killed += run_for(path, moments.uniform(0.05, 0.3))
        if path.exists() and len(set(entries_so_far(path, "finished"))) == len(KEYS):
            runs += 1
            check_complete(path)
            path = tmp_path / f"{runs}.jsonl"
    journal_worker.main(path)
    check_complete(path)


def entries_so_far(path, kind):
    whole = path.read_bytes().rpartition(b"\n")[0].splitlines()
    lines = [json.loads(line) for line in whole]
    return [tuple(line["key"]) for line in lines if line["kind"] == kind]


def check_complete(path):
    with Journal.resume(path, HEADER) as journal:
        assert journal.completed == {key: payload(key) for key in KEYS}
    assert Counter(entries(path, "finished")) == dict.fromkeys(KEYS, 1)
