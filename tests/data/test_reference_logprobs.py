import resource
import shutil
import subprocess
import sys
import tempfile
from collections import namedtuple
from contextlib import closing

import numpy as np
import pytest

from ewq.data.reference_logprobs import require_disk_space, write_reference
from ewq.errors import InputError, MeasurementError

SETTINGS = {"definition": "disjoint", "window": 512}
DiskUsage = namedtuple("DiskUsage", "total used free")


def rows(count, vocabulary=11):
    return np.random.default_rng(count).normal(size=(count, vocabulary)).astype(np.float32)


def rows_of(reference, begin, end):
    rows = np.empty((end - begin, reference.vocab_size), dtype=np.float32)
    reference.read_into(rows, begin)
    return rows


def test_rows_come_back_bit_for_bit(tmp_path):
    first, second = rows(5), rows(3)
    with closing(write_reference(tmp_path, 8, 11, SETTINGS, [first, second])) as reference:
        assert reference.settings == SETTINGS
        np.testing.assert_array_equal(rows_of(reference, 4, 7), np.vstack([first[4:], second[:2]]))
        np.testing.assert_array_equal(rows_of(reference, 0, 5), first)


def test_closing_may_be_repeated(tmp_path):
    reference = write_reference(tmp_path, 2, 11, SETTINGS, [rows(2)])
    reference.close()
    reference.close()


def test_a_killed_recording_leaves_nothing(tmp_path):
    script = (
        "import os, sys, numpy as np, pathlib\n"
        "from ewq.data.reference_logprobs import write_reference\n"
        "def blocks():\n"
        "    yield np.zeros((5, 11), np.float32)\n"
        "    os.kill(os.getpid(), 9)\n"
        "write_reference(pathlib.Path(sys.argv[1]), 8, 11, {}, blocks())\n"
    )
    died = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert died.returncode == -9
    assert list(tmp_path.iterdir()) == []


def test_a_failed_recording_gives_its_space_back(tmp_path, monkeypatch):
    def blocks():
        yield rows(5)
        raise RuntimeError("model broke")

    def make(**options):
        files.append(make_file(**options))
        return files[0]

    files, make_file = [], tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", make)
    with pytest.raises(RuntimeError, match="model broke"):
        write_reference(tmp_path, 8, 11, SETTINGS, blocks())
    assert files[0].closed


def test_missing_rows_are_an_error(tmp_path):
    with pytest.raises(MeasurementError, match="5 rows instead of 8"):
        write_reference(tmp_path, 8, 11, SETTINGS, [rows(5)])


def test_another_width_is_an_error(tmp_path):
    with pytest.raises(MeasurementError, match="vocabulary has 11"):
        write_reference(tmp_path, 1, 11, SETTINGS, [rows(1, vocabulary=12)])


def test_a_full_disk_is_said_beforehand_with_what_would_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(0, 0, 10 * 1000**3))
    require_disk_space(tmp_path, 10_000, 152_064)  # 6.1 GB
    with pytest.raises(InputError, match=r"100000 tokens need 60.8 GB.*at most 15999 tokens"):
        write_reference(tmp_path, 100_000, 152_064, SETTINGS, [])
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_is_one_line(tmp_path):
    """What another program takes after the check; the limit stands in for the disk."""
    blocks = [rows(100, vocabulary=1000)] * 8
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, unlimited[1]))
    try:
        with pytest.raises(MeasurementError, match=r"stop at 200 of 800 tokens.*EWQ_CACHE"):
            write_reference(tmp_path, 800, 1000, SETTINGS, blocks)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write reference.*Not a directory"):
        write_reference(tmp_path / "file" / "folder", 1, 11, SETTINGS, [])
