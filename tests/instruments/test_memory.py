import sys

import numpy as np
import pytest

from ewq.instruments import memory as module
from ewq.instruments.memory import (
    KernelPeak,
    ProcessMemory,
    SampledPeak,
    high_water_mark_bytes,
    release_free_memory,
)

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Linux's /proc")
SIZE = 60_000_000


def allocate_and_free():
    array = np.ones(SIZE // 8)
    return float(array.sum())


@LINUX
def test_the_kernels_peak_sees_memory_that_was_freed_again():
    memory = ProcessMemory()
    release_free_memory()
    before = memory.used_bytes()
    with memory.watch() as watch:
        allocate_and_free()
    assert isinstance(watch, KernelPeak)
    assert 0.9 * SIZE < watch.peak_bytes - before < 2 * SIZE


@LINUX
def test_each_watch_starts_from_now():
    memory = ProcessMemory()
    with memory.watch() as first:
        allocate_and_free()
    release_free_memory()
    with memory.watch() as second:
        pass
    assert second.peak_bytes < first.peak_bytes - SIZE / 2


def test_sampling_stands_in_where_the_peak_cannot_be_reset(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PROC", tmp_path / "no such proc")
    watch = ProcessMemory().watch()
    assert isinstance(watch, SampledPeak)
    with watch:
        held = np.ones(SIZE // 8)
    assert watch.peak_bytes > SIZE
    assert held[0] == 1


def test_sampling_reads_before_between_and_after():
    readings = iter([1, 5, 2])
    watch = SampledPeak(lambda: next(readings, 3))
    with watch:
        while next(readings, None) is not None:
            pass
    assert watch.peak_bytes >= 3


def test_the_high_water_mark_is_read_from_the_status_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PROC", tmp_path)
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n")
    assert high_water_mark_bytes() == 2048 * 1024
    (tmp_path / "status").write_text("Name:\tpython\n")
    with pytest.raises(OSError, match="no VmHWM"):
        high_water_mark_bytes()
