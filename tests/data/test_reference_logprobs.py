import re
import shutil
from collections import namedtuple

import numpy as np
import pytest

from ewq.data.reference_logprobs import ReferenceWriter, open_reference, require_disk_space
from ewq.errors import InputError, MeasurementError

SETTINGS = {"definition": "disjoint", "window": 512}
DiskUsage = namedtuple("DiskUsage", "total used free")


def rows(count, vocabulary=11):
    return np.random.default_rng(count).normal(size=(count, vocabulary)).astype(np.float32)


def test_rows_come_back_bit_for_bit(tmp_path):
    first, second = rows(5), rows(3)
    with ReferenceWriter(tmp_path / "ref", 8, 11, SETTINGS) as writer:
        writer.append(first)
        writer.append(second)
    reference = open_reference(tmp_path / "ref")
    assert reference == writer.reference
    assert reference.settings == SETTINGS
    np.testing.assert_array_equal(reference.rows(0, 5), first)
    np.testing.assert_array_equal(reference.rows(4, 7), np.vstack([first[4:], second[:2]]))
    assert (tmp_path / "ref").stat().st_size == 8 * 11 * 4


def test_deleting_leaves_nothing_and_may_be_repeated(tmp_path):
    with ReferenceWriter(tmp_path / "ref", 2, 11, SETTINGS) as writer:
        writer.append(rows(2))
    writer.reference.delete()
    writer.reference.delete()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_recording_leaves_nothing(tmp_path):
    def fail():
        with ReferenceWriter(tmp_path / "ref", 8, 11, SETTINGS) as writer:
            writer.append(rows(5))
            raise RuntimeError("model broke")

    with pytest.raises(RuntimeError, match="model broke"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_missing_rows_are_an_error(tmp_path):
    def stop_early():
        with ReferenceWriter(tmp_path / "ref", 8, 11, SETTINGS) as writer:
            writer.append(rows(5))

    with pytest.raises(MeasurementError, match="5 rows instead of 8"):
        stop_early()
    assert list(tmp_path.iterdir()) == []


def test_another_width_is_an_error(tmp_path):
    with ReferenceWriter(tmp_path / "ref", 1, 11, SETTINGS) as writer:
        with pytest.raises(MeasurementError, match="vocabulary has 11"):
            writer.append(rows(1, vocabulary=12))
        writer.append(rows(1))


@pytest.mark.parametrize("damage", ["truncated", "unfinished", "absent"])
def test_an_incomplete_reference_is_never_opened(tmp_path, damage):
    path = tmp_path / "ref"
    with ReferenceWriter(path, 4, 11, SETTINGS) as writer:
        writer.append(rows(4))
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "unfinished":
        (tmp_path / "ref.json").unlink()
    else:
        writer.reference.delete()
    with pytest.raises(InputError, match=re.escape(str(path))):
        open_reference(path)


def test_a_full_disk_is_said_beforehand_with_what_would_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(0, 0, 10 * 1000**3))
    require_disk_space(tmp_path, 10_000, 152_064)  # 6.1 GB
    with pytest.raises(InputError, match=r"100000 tokens need 60.8 GB.*at most 15999 tokens"):
        ReferenceWriter(tmp_path / "ref", 100_000, 152_064, SETTINGS)
    assert list(tmp_path.iterdir()) == []
