import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from contextlib import closing

import numpy as np
import pytest

from ewq.data.reference_logprobs import ReferenceWriter, require_disk_space
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
    with ReferenceWriter(tmp_path, 8, 11, SETTINGS) as writer:
        writer.append(first)
        writer.append(second)
    with closing(writer.reference) as reference:
        assert reference.settings == SETTINGS
        np.testing.assert_array_equal(rows_of(reference, 4, 7), np.vstack([first[4:], second[:2]]))
        np.testing.assert_array_equal(rows_of(reference, 0, 5), first)


def test_closing_may_be_repeated(tmp_path):
    with ReferenceWriter(tmp_path, 2, 11, SETTINGS) as writer:
        writer.append(rows(2))
    writer.reference.close()
    writer.reference.close()


def test_a_killed_recording_leaves_nothing(tmp_path):
    script = (
        "import os, sys, numpy as np, pathlib\n"
        "from ewq.data.reference_logprobs import ReferenceWriter\n"
        "with ReferenceWriter(pathlib.Path(sys.argv[1]), 8, 11, {}) as writer:\n"
        "    writer.append(np.zeros((5, 11), np.float32))\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    died = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert died.returncode == -9
    assert list(tmp_path.iterdir()) == []


def test_a_failed_recording_gives_its_space_back(tmp_path):
    def fail():
        with ReferenceWriter(tmp_path, 8, 11, SETTINGS) as writer:
            writers.append(writer)
            writer.append(rows(5))
            raise RuntimeError("model broke")

    writers = []
    with pytest.raises(RuntimeError, match="model broke"):
        fail()
    assert writers[0].reference.file.closed


def test_missing_rows_are_an_error(tmp_path):
    def stop_early():
        with ReferenceWriter(tmp_path, 8, 11, SETTINGS) as writer:
            writer.append(rows(5))

    with pytest.raises(MeasurementError, match="5 rows instead of 8"):
        stop_early()


def test_another_width_is_an_error(tmp_path):
    with ReferenceWriter(tmp_path, 1, 11, SETTINGS) as writer:
        with pytest.raises(MeasurementError, match="vocabulary has 11"):
            writer.append(rows(1, vocabulary=12))
        writer.append(rows(1))
    writer.reference.close()


def test_a_full_disk_is_said_beforehand_with_what_would_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(0, 0, 10 * 1000**3))
    require_disk_space(tmp_path, 10_000, 152_064)  # 6.1 GB
    with pytest.raises(InputError, match=r"100000 tokens need 60.8 GB.*at most 15999 tokens"):
        ReferenceWriter(tmp_path, 100_000, 152_064, SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_is_one_line(tmp_path):
    """What another program takes after the check; the limit stands in for the disk."""

    def record():
        with ReferenceWriter(tmp_path, 800, 1000, SETTINGS) as writer:
            for _ in range(8):
                writer.append(rows(100, vocabulary=1000))

    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, unlimited[1]))
    try:
        with pytest.raises(MeasurementError, match=r"stop at 200 of 800 tokens.*EWQ_CACHE"):
            record()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write reference.*Not a directory"):
        ReferenceWriter(tmp_path / "file" / "folder", 1, 11, SETTINGS)
